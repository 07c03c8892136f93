//! Links as cortex-m-rt asks; embassy-stm32 brings the chip's memory map.

fn main() {
    println!("cargo:rustc-link-arg-bins=-Tlink.x");
    println!("cargo:rustc-link-arg-bins=--nmagic");
}

//! Any bytes: a typed error, or a spec that every party can measure and that encodes to what was read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use secure_router_core::circuit::Program;
use secure_router_core::cost::{Cost, router_scores};
use secure_router_core::session::LinkProfile;
use secure_router_core::spec::{MAX_SPEC_BYTES, PoolSpec};
use secure_router_core::{dealer, device, server};

fuzz_target!(|data: &[u8]| {
    let Ok(spec) = PoolSpec::from_bytes(data) else { return };
    let mut buffer = [0; MAX_SPEC_BYTES];
    let bytes = spec.to_bytes(&mut buffer).expect("a valid spec fits its buffer");
    assert_eq!(PoolSpec::from_bytes(bytes).as_ref(), Ok(&spec));
    spec.fingerprint().expect("a valid spec has a fingerprint");
    for slot in spec.slots() {
        let program = Program::of(&spec, slot).expect("a slot of the spec");
        program.layout().expect("validated");
        device::work_words(&program, 4).expect("validated");
        server::work_words(&program).expect("validated");
        dealer::work_words(&program).expect("validated");
        Cost::of(&spec, slot, 4).expect("validated");
    }
    router_scores(&spec, 256, 0xff, &LinkProfile { bytes_per_second: 0, round_trip_us: u32::MAX }).expect("validated");
});

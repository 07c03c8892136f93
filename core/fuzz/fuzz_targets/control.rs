//! Any bytes: a typed error, or a message that encodes to what was read.
#![no_main]

use libfuzzer_sys::fuzz_target;
use secure_router_core::session::{Control, MAX_CONTROL_BYTES, ToDevice, ToServer};

fn check<M: Control + PartialEq + std::fmt::Debug>(data: &[u8]) {
    let Ok(message) = M::from_bytes(data) else { return };
    let mut buffer = [0; MAX_CONTROL_BYTES];
    let len = message.to_bytes(&mut buffer).expect("a message fits its buffer");
    assert!(len <= data.len());
    assert_eq!(M::from_bytes(&buffer[..len]), Ok(message));
}

fuzz_target!(|data: &[u8]| {
    check::<ToDevice>(data);
    check::<ToServer>(data);
});

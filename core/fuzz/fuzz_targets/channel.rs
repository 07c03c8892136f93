//! One end of an established channel, in either role, against bytes that are the peer's, changed or made up.
#![no_main]

use bench::{Bytes, converse};
use libfuzzer_sys::fuzz_target;
use secure_router_core::channel::{Channel, Link};

fuzz_target!(|data: &[u8]| {
    converse(
        &mut Bytes(data),
        |rx, tx| Channel::established(Link::DeviceServer, true, rx, tx).unwrap(),
        |rx, tx| Channel::established(Link::DeviceServer, false, rx, tx).unwrap(),
    );
});

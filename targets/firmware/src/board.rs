//! The board this firmware is built for; the constants come from its file in `boards/`.

include!(concat!(env!("OUT_DIR"), "/board.rs"));

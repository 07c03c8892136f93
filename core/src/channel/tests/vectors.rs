//! Published and pinned transcripts.

use noise_protocol::HandshakeState;
use noise_protocol::patterns::noise_ik;

use super::*;
use crate::channel::noise::{Blake2s, ChaChaPoly, X25519};
use crate::channel::secret::Secret;

fn hex(text: &str) -> Vec<u8> {
    (0..text.len() / 2).map(|i| u8::from_str_radix(&text[2 * i..2 * i + 2], 16).unwrap()).collect()
}

fn key(text: &str) -> Secret<32> {
    noise_protocol::U8Array::from_slice(&hex(text))
}

/// The vector for this protocol name in the Cacophony collection, which other Noise implementations test against.
#[test]
fn the_primitives_reproduce_the_cacophony_vector() {
    let prologue = hex("4a6f686e2047616c74");
    let mut ends: [HandshakeState<X25519, ChaChaPoly, Blake2s>; 2] = [
        HandshakeState::new(
            noise_ik(),
            true,
            &prologue,
            Some(key("e61ef9919cde45dd5f82166404bd08e38bceb5dfdfded0a34c8df7ed542214d1")),
            Some(key("893e28b9dc6ca8d611ab664754b8ceb7bac5117349a4439a6b0569da977c464a")),
            Some(*key("31e0303fd6418d2f8c0e78b91f22e8caed0fbe48656dcf4767e4834f701b8f62").bytes()),
            None,
        ),
        HandshakeState::new(
            noise_ik(),
            false,
            &prologue,
            Some(key("4a3acbfdb163dec651dfa3194dece676d437029c62a408b4c5ea9114246e4893")),
            Some(key("bbdb4cdbd309f1a1f2e1456967fe288cadd6f712d65dc7b7793d5e63da6b375b")),
            None,
            None,
        ),
    ];
    let handshake = [
        (
            "4c756477696720766f6e204d69736573",
            "ca35def5ae56cec33dc2036731ab14896bc4c75dbb07a61f879f8e3afa4c79440b03ddc7aac5123d06a1b23b71670e32\
             e76c28239a7ca4ac8f784de7e44c1adbfc6e83fef7352a58d9d56157400c0a737b1d171ce368229c7b752ac25b8faf4e\
             ca690f6d896f543be02c996ab2b86b76",
        ),
        (
            "4d757272617920526f746862617264",
            "95ebc60d2b1fa672c1f46a8aa265ef51bfe38e7ccb39ec5be34069f144808843d9b5a8927f0ac9655ef76833bc7e5561\
             f42e691ac8404efd6fbd6308b6a27c",
        ),
    ];
    for (turn, (payload, message)) in handshake.into_iter().enumerate() {
        let (payload, message) = (hex(payload), hex(message));
        let mut sealed = vec![0; message.len()];
        ends[turn].write_message(&payload, &mut sealed).unwrap();
        assert_eq!(sealed, message);
        let mut opened = vec![0; payload.len()];
        ends[1 - turn].read_message(&message, &mut opened).unwrap();
        assert_eq!(opened, payload);
    }
    let hash = hex("48f3cb8bc9319da4ba1e9933991b1c4ed4034f1f126a76d3a1fbcfd7f94248d4");
    assert_eq!(ends[0].get_hash(), hash);
    assert_eq!(ends[1].get_hash(), hash);

    let transport = [
        ("462e20412e20486179656b", "2c256ed08fcd08c2980f954ee4beaccb61c9581340f5dd2fd1cf3b"),
        ("4361726c204d656e676572", "d6033f70eee20945c7c9dba304e397ee3b284ff5e00fd9efb095d3"),
        ("4a65616e2d426170746973746520536179", "a9c068ca5d8babf72560652d8e851adbfac35c8a66e810d560863173e96adf4cfe"),
        (
            "457567656e2042f6686d20766f6e2042617765726b",
            "2a09d8f459e5927e40fdd2eddc99bdafb04e13a26f145cb5cfe9e6ba34c94331ebc17d5156",
        ),
    ];
    let (mut up, mut down) = ends[0].get_ciphers();
    for (turn, (payload, message)) in transport.into_iter().enumerate() {
        let cipher = if turn % 2 == 0 { &mut up } else { &mut down };
        let mut body = hex(payload);
        let plaintext = body.len();
        body.extend([0; 16]);
        assert_eq!(cipher.encrypt_ad_in_place(&[], &mut body, plaintext), body.len());
        assert_eq!(body, hex(message));
    }
}

/// A source that hands out one prepared secret: 7 i + `seed`.
struct Prepared(u8);

impl Prepared {
    fn bytes(&self) -> [u8; 32] {
        core::array::from_fn(|i| (i as u8).wrapping_mul(7).wrapping_add(self.0))
    }
}

impl TryRng for Prepared {
    type Error = Infallible;

    fn try_next_u32(&mut self) -> Result<u32, Infallible> {
        Ok(0)
    }

    fn try_next_u64(&mut self) -> Result<u64, Infallible> {
        Ok(0)
    }

    fn try_fill_bytes(&mut self, dst: &mut [u8]) -> Result<(), Infallible> {
        dst.copy_from_slice(&self.bytes());
        Ok(())
    }
}

impl TryCryptoRng for Prepared {}

/// Version 1 of the wire format, pinned: a change that turns this red is a new protocol version. The transcript was
/// produced by `snow` 0.10, as initiator and as responder, from the same keys.
#[test]
fn version_1_stays_version_1() {
    let device = StaticSecret::from_bytes(&Prepared(1).bytes()).unwrap();
    let server = StaticSecret::from_bytes(&Prepared(2).bytes()).unwrap();
    let mut buffers = [[0; 128]; 4];
    let [a, b, c, d] = &mut buffers;
    let mut dialler = Channel::initiator(LINK, &device, server.public_key(), &mut Prepared(3), a, b).unwrap();
    let mut answerer = Channel::responder(LINK, &server, &mut Prepared(4), c, d).unwrap();

    let first = take(&mut dialler);
    assert_eq!(
        first,
        hex("535201116000bb50ff9e82a574cfbf820e97f60fb9c143ec7415cf514f8cfd98eff59e059614344a53c7a015bc8f\
             3a4847c23bbaad8898cbed3ad5b436a875408561050c249fcd30ba43fdcb2c82acc943bb6dfb61b1715e2109682a\
             cfbfdd750974cd192f3e")
    );
    give(&mut answerer, &first).unwrap();
    answerer.accept().unwrap();
    let second = take(&mut answerer);
    assert_eq!(
        second,
        hex("535201123000f74e5bb7515d565274967af75d88497dc6fc7fcd607da9dd91a617db86ad0110c6ebf60b7c9708ab\
             da98efdcb9406719")
    );
    give(&mut dialler, &second).unwrap();
    assert_eq!(frame(&mut dialler, 9, b"pinned"), hex("170006b12e3a47cdea4838eda8511d1b0cf7015715a0c2b512"));
}

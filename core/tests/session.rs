//! A device's session against a scripted server: whole conversations, and everything that can go wrong in them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

mod lab;

use lab::peer::{Crossed, Fixture, Memory, Outcome, Peer, Store, carry, connect, event, request};
use lab::{Dither, reference};
use secure_router_core::circuit::Slot;
use secure_router_core::session::Event;

const LARGE: Slot = Slot::Model(2);

#[test]
fn a_fixed_model_answers_as_the_reference_does() {
    let fixture = Fixture::shared();
    let (mut memory, store) = (Memory::default(), Store::default());
    let mut peer = Peer::new(fixture);
    let mut session = connect(fixture, &mut memory, &store, 2);
    assert_eq!(event(&mut session, &mut peer), Event::Ready);
    for (counter, slot) in [(0, Slot::Model(0)), (0, Slot::Model(1)), (0, LARGE), (1, LARGE)] {
        session.prepare(slot).unwrap();
        assert_eq!(event(&mut session, &mut peer), Event::Prepared(slot));
        assert_eq!(session.ready(slot), 1);
        let input = fixture.input(counter as i16);
        session.infer(request(slot), &input).unwrap();
        assert_eq!(event(&mut session, &mut peer), Event::Answer);
        let mut rounding = Dither(fixture.seeds(slot).dealer_keys(counter));
        let expected = reference(fixture.secret(slot), &input, &[], &mut rounding).unwrap();
        assert_eq!(session.logits().map(i64::from).collect::<Vec<_>>(), expected, "{slot:?}");
        assert_eq!(session.ready(slot), 0);
    }
    let _ = (Crossed::default(), carry as fn(_, _, _, _, _) -> Outcome);
}

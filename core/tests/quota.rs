//! Batches: every input is answered once, by its own model where there is room, and no route changes what is run.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panicking")]

use proptest::collection::vec;
use proptest::prelude::*;
use secure_router_core::quota::{QuotaError, Quotas, gather, keep};
use secure_router_core::spec::MAX_MODELS;

/// The same, in the plainest words.
fn plainly(quotas: &[u16], routes: &[u8]) -> Vec<usize> {
    let mut left = quotas.to_vec();
    let choose = |route: usize| {
        let (below, from) = left.split_at_mut(route.min(quotas.len()));
        let up = from.iter_mut().enumerate().find(|(_, left)| **left > 0).map(|(at, left)| (route + at, left));
        let (model, left) =
            up.or_else(|| below.iter_mut().enumerate().rev().find(|(_, left)| **left > 0)).expect("room");
        *left -= 1;
        model
    };
    routes.iter().map(|route| usize::from(*route)).map(choose).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn each_input_is_answered_exactly_once_whatever_the_routes(
        quotas in vec(0u16..6, 1..=MAX_MODELS), routes in vec(0u8..MAX_MODELS as u8 + 1, 0..40), len in 1usize..4,
    ) {
        let total: u16 = quotas.iter().sum();
        let batch = Quotas::new(&quotas).unwrap();
        prop_assert_eq!(batch.places(), total);
        let mut places = vec![u16::MAX; routes.len()];
        if routes.len() > usize::from(total) {
            let refused = QuotaError::TooFew { inputs: routes.len(), places: total };
            prop_assert_eq!(batch.assign(&routes, &mut places), Err(refused));
            return Ok(());
        }
        batch.assign(&routes, &mut places).unwrap();
        // Each place is one inference of its model, and the models' inferences are the quotas.
        let models: Vec<u8> = (0..total).map(|place| batch.model(place).unwrap()).collect();
        prop_assert_eq!(batch.model(total), None);
        for (model, quota) in quotas.iter().enumerate() {
            prop_assert_eq!(models.iter().filter(|have| usize::from(**have) == model).count(), usize::from(*quota));
        }
        let wanted = plainly(&quotas, &routes);
        let found: Vec<usize> = places.iter().map(|place| usize::from(models[usize::from(*place)])).collect();
        prop_assert_eq!(found, wanted);

        // Inputs are numbers that say who they are; a place that is left gets zeros.
        let inputs: Vec<i16> = (0..routes.len()).flat_map(|index| (0..len).map(move |at| (100 * index + at + 1) as i16)).collect();
        let (mut input, mut answers, mut blank) = (vec![-1; len], vec![0; routes.len()], 0);
        for place in 0..total {
            gather(&places, place, &inputs, &mut input);
            blank += usize::from(input.iter().all(|value| *value == 0));
            keep(&places, place, input[0] as u16 + 7, &mut answers);
        }
        prop_assert_eq!(blank, usize::from(total) - routes.len());
        let wanted: Vec<u16> = (0..routes.len()).map(|index| (100 * index + 8) as u16).collect();
        prop_assert_eq!(answers, wanted);
    }
}

#[test]
fn what_does_not_fit_is_an_error() {
    assert_eq!(Quotas::new(&[1; MAX_MODELS + 1]), Err(QuotaError::TooLarge));
    assert_eq!(Quotas::new(&[u16::MAX, 1]), Err(QuotaError::TooLarge));
    let quotas = Quotas::new(&[u16::MAX, 0]).unwrap();
    assert_eq!(quotas.model(u16::MAX - 1), Some(0));
    assert_eq!(quotas.assign(&[0; 3], &mut [0; 2]), Err(QuotaError::Length));
}

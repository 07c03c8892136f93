//! Routing policies and budgets between real parties, and what outlives their restarts.

use anyhow::Result;
use secure_router::pool::Pool;
use secure_router::provision::Budgets;
use secure_router_core::circuit::Slot;
use secure_router_core::quota::{Quotas, gather, keep};
use secure_router_core::routing::Routing;
use secure_router_core::session::{Event, LinkProfile, Refusal, Request, SessionError};
use secure_router_tests::{Device, POOL, Parties, examples, reference};

const NANO: Slot = Slot::Model(0);

fn pool(routing: Routing) -> Result<Pool> {
    Ok(Pool::load(POOL.as_ref())?.with_routing(routing)?)
}

/// What comes of preparing `slot`.
async fn prepared(device: &mut Device, slot: Slot) -> Result<Event> {
    device.session.prepare(slot)?;
    Ok(device.event().await?)
}

/// What comes first of asking `slot`.
async fn asked(device: &mut Device, slot: Slot, input: &[i16]) -> Result<Event> {
    device.session.infer(Request { slot, lambda: 64, link: LinkProfile::UART }, input)?;
    Ok(device.event().await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_privacy_budget_is_dealt_to_the_last_thousandth_and_no_further() -> Result<()> {
    let budget = Budgets { epsilon: Some(1000), ..Budgets::default() };
    let private = |epsilon| pool(Routing::Private { epsilon });
    let mut parties = Parties::start_with(&[("a", budget), ("b", Budgets::default())], private(400)?).await?;
    let spent = Event::Refused(Refusal::PrivacyBudget);

    let mut a = parties.connect("a").await?;
    for _ in 0..2 {
        assert_eq!(prepared(&mut a, Slot::Router).await?, Event::Prepared(Slot::Router));
    }
    assert_eq!(prepared(&mut a, Slot::Router).await?, spent);
    // A model's run tells no route; and others have budgets of their own.
    assert_eq!(prepared(&mut a, NANO).await?, Event::Prepared(NANO));
    let mut b = parties.connect("b").await?;
    for _ in 0..3 {
        assert_eq!(prepared(&mut b, Slot::Router).await?, Event::Prepared(Slot::Router));
    }
    // The stock that was dealt answers.
    a.prepare(Slot::Model(1)).await?;
    a.prepare(Slot::Model(2)).await?;
    let input = &examples()?.inputs[0];
    let (class, model) = a.infer(Slot::Router, input).await?;
    assert_eq!(class, reference(&private(400)?, model, input)?);
    drop((a, b));

    // Another pool, another dealer's process: 800 are dealt, 200 are left.
    parties.restart(private(200)?).await?;
    let mut a = parties.connect("a").await?;
    assert_eq!(prepared(&mut a, Slot::Router).await?, Event::Prepared(Slot::Router));
    assert_eq!(prepared(&mut a, Slot::Router).await?, spent);
    drop(a);
    parties.restart(private(1)?).await?;
    let mut a = parties.connect("a").await?;
    assert_eq!(prepared(&mut a, Slot::Router).await?, spent);
    drop(a);
    // Routes that the server does not learn cost nothing.
    parties.restart(pool(Routing::Device)?).await?;
    let mut a = parties.connect("a").await?;
    assert_eq!(prepared(&mut a, Slot::Router).await?, Event::Prepared(Slot::Router));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_with_a_privacy_budget_meets_no_open_routing() -> Result<()> {
    let budget = Budgets { epsilon: Some(1000), ..Budgets::default() };
    let parties = Parties::start_with(&[("a", budget)], pool(Routing::Open)?).await?;
    // The device refuses by itself,
    let refused = parties.connect("a").await.err().map(|error| error.to_string());
    let least = Routing::Private { epsilon: 1000 };
    assert_eq!(refused, Some(SessionError::Routing { offered: Routing::Open, least }.to_string()));
    // and the dealer would not have dealt.
    let (_, _, file) = secure_router::provision::paths(&parties.path(""), "a");
    let text = std::fs::read_to_string(&file)?;
    let mut value: serde_json::Value = serde_json::from_str(&text)?;
    value["routing"] = serde_json::to_value(Routing::Open)?;
    std::fs::write(&file, value.to_string())?;
    let mut a = parties.connect("a").await?;
    assert_eq!(prepared(&mut a, Slot::Router).await?, Event::Refused(Refusal::Routing));
    assert_eq!(prepared(&mut a, NANO).await?, Event::Prepared(NANO));
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_of_answers_is_given_to_the_last_and_survives_a_restart() -> Result<()> {
    let budget = Budgets { queries: Some(5), ..Budgets::default() };
    let mut parties = Parties::start_with(&[("a", budget)], pool(Routing::Open)?).await?;
    let (inputs, spent) = (examples()?.inputs, Event::Refused(Refusal::QueryBudget));
    let input = &inputs[0];
    let unsure = pool(Routing::Open)?.least_sure(&inputs)?.expect("the router is not sure of everything").to_vec();
    let mut a = parties.connect("a").await?;
    for _ in 0..2 {
        a.prepare_all().await?;
    }
    // One by the router that answers itself, two by the router that goes on to another model, and one by name.
    let routed = |lambda| Request { slot: Slot::Router, lambda, link: LinkProfile::UART };
    assert_eq!(a.ask(routed(300), input).await?, NANO);
    assert_ne!(a.ask(routed(0), &unsure).await?, NANO);
    a.infer(NANO, input).await?;
    drop(a);
    parties.restart(pool(Routing::Open)?).await?;
    let mut a = parties.connect("a").await?;
    a.prepare_all().await?;
    a.infer(NANO, input).await?;
    a.prepare_all().await?;
    let ready = a.session.ready(Slot::Router);
    for slot in [NANO, Slot::Router, Slot::Model(1)] {
        assert_eq!(asked(&mut a, slot, input).await?, spent, "{slot:?}");
    }
    drop(a);
    // What was refused is still in stock at the server; the device has burned its counter.
    let mut a = parties.connect("a").await?;
    assert_eq!(a.session.ready(Slot::Router), ready - 1);
    assert_eq!(asked(&mut a, Slot::Router, input).await?, spent);
    drop(a);
    // Another pool gives no more either.
    parties.restart(pool(Routing::Device)?).await?;
    let mut a = parties.connect("a").await?;
    a.prepare_all().await?;
    assert_eq!(asked(&mut a, NANO, input).await?, spent);
    // A router that answers tells a label beside its route, whoever learns that.
    assert_eq!(asked(&mut a, Slot::Router, input).await?, spent);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_fills_its_quotas_and_each_input_gets_the_answer_of_its_place() -> Result<()> {
    let pool = pool(Routing::Device)?;
    let parties = Parties::start_with(&[("a", Budgets::default())], pool.clone()).await?;
    let mut a = parties.connect("a").await?;
    let quotas = Quotas::new(&[2, 2, 1])?;
    let inputs: Vec<Vec<i16>> = examples()?.inputs.into_iter().step_by(100).take(4).collect();
    let flat = inputs.concat();
    let mut routes = Vec::new();
    for input in &inputs {
        a.prepare(Slot::Router).await?;
        match asked(&mut a, Slot::Router, input).await? {
            Event::Advised(Slot::Model(model)) => routes.push(model),
            event => anyhow::bail!("{event:?}"),
        }
    }
    let (mut places, mut classes, mut input) = (vec![0; 4], vec![0; 4], vec![0; flat.len() / 4]);
    quotas.assign(&routes, &mut places)?;
    for place in 0..quotas.places() {
        let slot = Slot::Model(quotas.model(place).unwrap());
        gather(&places, place, &flat, &mut input);
        a.prepare(slot).await?;
        let (class, _) = a.infer(slot, &input).await?;
        keep(&places, place, class as u16, &mut classes);
    }
    let mut agree = 0;
    for (input, (place, class)) in inputs.iter().zip(places.iter().zip(&classes)) {
        let slot = Slot::Model(quotas.model(*place).unwrap());
        agree += usize::from(reference(&pool, slot, input)? == usize::from(*class));
    }
    assert!(agree >= 3, "{agree} of 4 answers equal the reference's");
    Ok(())
}

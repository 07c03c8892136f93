//! Dealer, server and devices over loopback TCP.

use anyhow::Result;
use embedded_io_adapters::std::FromStd;
use embedded_io_adapters::tokio_1::FromTokio;
use secure_router::pool::Pool;
use secure_router_core::circuit::Slot;
use secure_router_core::cost::Cost;
use secure_router_core::driver::{run, run_async};
use secure_router_core::session::{Event, LinkProfile, Request};
use secure_router_tests::{Device, POOL, Parties, examples, reference, session};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

fn pool() -> Result<Pool> {
    Pool::load(POOL.as_ref())
}

#[tokio::test(flavor = "multi_thread")]
async fn every_program_answers_as_the_reference_does_and_costs_what_the_model_says() -> Result<()> {
    let parties = Parties::start(&["a"]).await?;
    let mut device = parties.connect("a").await?;
    let (pool, examples) = (pool()?, examples()?);
    let mut agree = 0;
    for (index, input) in examples.inputs.iter().step_by(75).enumerate() {
        device.prepare_all().await?;
        let slot = Slot::Model((index % pool.spec.models.len()) as u8);
        for wanted in [slot, Slot::Router] {
            if device.session.ready(slot) == 0 {
                device.prepare(slot).await?;
            }
            let before = device.moved;
            let (class, model) = device.infer(wanted, input).await?;
            agree += usize::from(class == reference(&pool, model, input)?);
            let cost = match model {
                Slot::Model(index) if wanted == Slot::Router => Cost::routed(&pool.spec, index, 4)?,
                _ => Cost::of(&pool.spec, wanted, 4)?,
            };
            assert_eq!(device.moved.sent - before.sent, cost.online.up);
            assert_eq!(device.moved.received - before.received, cost.online.down);
        }
    }
    // Stochastic rounding may turn an input whose two best classes nearly tie.
    assert!(agree >= 19, "{agree} of 20 answers equal the reference's");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_devices_at_once_get_their_own_answers() -> Result<()> {
    let names: Vec<String> = (0..24).map(|index| format!("d{index}")).collect();
    let parties = std::sync::Arc::new(Parties::start(&names.iter().map(String::as_str).collect::<Vec<_>>()).await?);
    let (pool, examples) = (std::sync::Arc::new(pool()?), std::sync::Arc::new(examples()?));
    let tasks: Vec<_> = names
        .into_iter()
        .enumerate()
        .map(|(index, name)| {
            let (parties, pool, examples) = (parties.clone(), pool.clone(), examples.clone());
            tokio::spawn(async move {
                let mut device = parties.connect(&name).await?;
                device.prepare(Slot::Model(0)).await?;
                let input = &examples.inputs[index * 31];
                let (class, _) = device.infer(Slot::Model(0), input).await?;
                anyhow::Ok(class == reference(&pool, Slot::Model(0), input)?)
            })
        })
        .collect();
    let mut agree = 0;
    for task in tasks {
        agree += usize::from(task.await??);
    }
    assert!(agree >= 23, "{agree} of 24");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_empty_stock_is_said_and_preparing_on_demand_helps() -> Result<()> {
    let parties = Parties::start(&["a"]).await?;
    let mut device = parties.connect("a").await?;
    let inputs = examples()?.inputs;
    let error = device.infer(Slot::Router, &inputs[0]).await.unwrap_err().to_string();
    assert!(error.contains("nothing is in stock for the router"), "{error}");
    // The router is in stock and no model is: it answers itself, or the server says which one is missing.
    for input in &inputs {
        device.prepare(Slot::Router).await?;
        match device.infer(Slot::Router, input).await {
            Ok((_, model)) => assert_eq!(model, Slot::Model(0)),
            Err(error) => {
                assert!(error.to_string().contains("no inference is in stock for model"), "{error}");
                device.prepare_all().await?;
                device.infer(Slot::Router, input).await?;
                return Ok(());
            }
        }
    }
    panic!("every input was the router's own")
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_outlives_server_and_device_and_is_spent_once() -> Result<()> {
    let mut parties = Parties::start(&["a"]).await?;
    let input = &examples()?.inputs[0];
    let mut device = parties.connect("a").await?;
    device.prepare(Slot::Model(0)).await?;
    device.prepare(Slot::Model(0)).await?;
    device.infer(Slot::Model(0), input).await?;
    drop(device);
    parties.restart_server(pool()?).await?;
    let mut device = parties.connect("a").await?;
    assert_eq!(device.session.ready(Slot::Model(0)), 1);
    device.infer(Slot::Model(0), input).await?;
    assert_eq!(device.session.ready(Slot::Model(0)), 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_of_a_changed_pool_is_not_used() -> Result<()> {
    let mut parties = Parties::start(&["a"]).await?;
    let mut device = parties.connect("a").await?;
    device.prepare(Slot::Model(0)).await?;
    drop(device);
    let mut changed = pool()?;
    // Names take part in the fingerprint, so renaming a model makes another pool of it.
    changed.spec.models[0].name = "other".try_into().unwrap();
    parties.restart_server(changed).await?;
    let mut device = parties.connect("a").await?;
    assert_eq!(device.session.ready(Slot::Model(0)), 0);
    device.prepare(Slot::Model(0)).await?;
    device.infer(Slot::Model(0), &examples()?.inputs[0]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_is_not_provisioned_is_turned_away() -> Result<()> {
    let parties = Parties::start(&["a"]).await?;
    let others = Parties::start(&["b"]).await?;
    // Its own server's key is not this server's: the handshake fails on either side.
    assert!(Device::connect(&others, "b", &parties.server_address).await.is_err());
    // A stranger with the right server key: same server, device entry removed.
    let server = std::fs::read_to_string(parties.path("server.json"))?;
    let mut json: serde_json::Value = serde_json::from_str(&server)?;
    json["devices"] = serde_json::json!([]);
    std::fs::write(parties.path("server.json"), json.to_string())?;
    let mut parties = parties;
    parties.restart_server(pool()?).await?;
    assert!(parties.connect("a").await.is_err());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_dealer_preparing_is_refused_and_the_session_goes_on() -> Result<()> {
    let mut parties = Parties::start(&["a"]).await?;
    let mut device = parties.connect("a").await?;
    device.prepare(Slot::Model(0)).await?;
    drop(device);
    parties.stop_dealer().await;
    // A new server has no link to the dealer yet, and cannot make one.
    parties.restart_server(pool()?).await?;
    let mut device = parties.connect("a").await?;
    for _ in 0..2 {
        let error = device.prepare(Slot::Model(1)).await.unwrap_err().to_string();
        assert!(error.contains("has got nothing from its dealer"), "{error}");
    }
    device.infer(Slot::Model(0), &examples()?.inputs[0]).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_kernels_own_drivers_reach_the_server() -> Result<()> {
    let parties = Parties::start(&["async", "blocking"]).await?;
    let input = examples()?.inputs[0].clone();
    let expected = reference(&pool()?, Slot::Model(0), &input)?;
    let request = Request { slot: Slot::Model(0), lambda: 0, link: LinkProfile::LAN };

    let mut over_async = session(&parties, "async")?;
    let mut link = FromTokio::new(TcpStream::connect(&parties.server_address).await?);
    assert_eq!(run_async(&mut link, &mut over_async).await.unwrap(), Event::Ready);
    over_async.prepare(Slot::Model(0))?;
    assert_eq!(run_async(&mut link, &mut over_async).await.unwrap(), Event::Prepared(Slot::Model(0)));
    over_async.infer(request, &input)?;
    assert_eq!(run_async(&mut link, &mut over_async).await.unwrap(), Event::Answer);
    assert_eq!(over_async.class(), Some(expected));

    let (mut blocking, address) = (session(&parties, "blocking")?, parties.server_address.clone());
    let class = tokio::task::spawn_blocking(move || -> Result<_> {
        let mut link = FromStd::new(std::net::TcpStream::connect(address)?);
        let mut next = |session: &mut _| run(&mut link, session).map_err(|error| anyhow::anyhow!("{error}"));
        assert_eq!(next(&mut blocking)?, Event::Ready);
        blocking.prepare(Slot::Model(0))?;
        assert_eq!(next(&mut blocking)?, Event::Prepared(Slot::Model(0)));
        blocking.infer(request, &input)?;
        assert_eq!(next(&mut blocking)?, Event::Answer);
        Ok(blocking.class())
    });
    assert_eq!(class.await??, Some(expected));
    Ok(())
}

/// Forwards one connection and cuts it after `limit` bytes from the device.
async fn cutting_proxy(server: String, limit: u64) -> Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string();
    tokio::spawn(async move {
        let (device, _) = listener.accept().await?;
        let server = TcpStream::connect(server).await?;
        let (mut from_device, mut to_device) = device.into_split();
        let (mut from_server, mut to_server) = server.into_split();
        let down = tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_device).await });
        let mut left = limit;
        let mut buffer = [0; 512];
        while left > 0 {
            let count = from_device.read(&mut buffer).await?;
            if count == 0 {
                break;
            }
            let count = count.min(left as usize);
            to_server.write_all(&buffer[..count]).await?;
            left -= count as u64;
        }
        down.abort();
        anyhow::Ok(())
    });
    Ok(address)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hang_up_anywhere_spends_the_item_at_most_once_and_the_next_session_works() -> Result<()> {
    let parties = Parties::start(&["a"]).await?;
    let input = examples()?.inputs[0].clone();
    let expected = reference(&pool()?, Slot::Model(0), &input)?;
    let cost = Cost::of(&pool()?.spec, Slot::Model(0), 4)?;
    let greeting = {
        let device = parties.connect("a").await?;
        device.moved.sent
    };
    for cut in (0..greeting + cost.online.up + cost.offline.up).step_by(331) {
        let address = cutting_proxy(parties.server_address.clone(), cut).await?;
        let attempt = async {
            let mut device = Device::connect(&parties, "a", &address).await?;
            device.prepare(Slot::Model(0)).await?;
            device.infer(Slot::Model(0), &input).await
        };
        let cut_short = attempt.await;
        assert!(cut_short.is_err(), "cut after {cut} bytes, and yet an answer");
        let mut device = parties.connect("a").await?;
        if device.session.ready(Slot::Model(0)) == 0 {
            device.prepare(Slot::Model(0)).await?;
        }
        assert_eq!(device.infer(Slot::Model(0), &input).await?.0, expected);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_counter_file_that_was_rolled_back_does_not_reuse_a_mask() -> Result<()> {
    let parties = Parties::start(&["a"]).await?;
    let input = &examples()?.inputs[0];
    let counters = parties.path("counters-a");
    let mut device = parties.connect("a").await?;
    device.prepare(Slot::Model(0)).await?;
    device.infer(Slot::Model(0), input).await?;
    drop(device);
    // An old backup of the device: the server has seen further, and stays there.
    std::fs::write(&counters, "[0,0,0,0,0,0,0,0,0]")?;
    let mut device = parties.connect("a").await?;
    assert_eq!(device.session.ready(Slot::Model(0)), 0);
    device.prepare(Slot::Model(0)).await?;
    device.infer(Slot::Model(0), input).await?;
    let stored: Vec<u64> = serde_json::from_str(&std::fs::read_to_string(&counters)?)?;
    assert_eq!(stored[1], 2, "the second inference took counter 1, not 0 again");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_item_is_spent_before_the_input_is_read() -> Result<()> {
    let parties = Parties::start(&["a"]).await?;
    let input = &examples()?.inputs[0];
    let mut device = parties.connect("a").await?;
    let greeting = device.moved.sent;
    device.prepare(Slot::Model(0)).await?;
    drop(device);

    // The link ends inside the masked input, behind the request itself.
    let address = cutting_proxy(parties.server_address.clone(), greeting + 200).await?;
    let mut device = Device::connect(&parties, "a", &address).await?;
    assert!(device.infer(Slot::Model(0), input).await.is_err());
    drop(device);

    // Even a device that is put back to before it burned the counter finds the item gone, as soon
    // as the server has seen the request.
    for _ in 0..500 {
        std::fs::write(parties.path("counters-a"), "[0,0,0,0,0,0,0,0,0]")?;
        if parties.connect("a").await?.session.ready(Slot::Model(0)) == 0 {
            return Ok(());
        }
    }
    panic!("the item of a request that was cut off is still in stock");
}

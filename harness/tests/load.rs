//! Many devices at once against one server and one dealer, which are processes of their own: alone, then beside a device
//! that stops in the middle, then beside hostile ones. Every answer must be right, bit for bit. Prints what each of
//! the three took, which is not judged. Environment: `LOAD_DEVICES`, and `LOAD_QUESTIONS` to each device and phase.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test")]

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use secure_router_core::circuit::Slot;
use secure_router_core::session::{LinkProfile, Request};
use secure_router_tests::exact::{Exact, public_key};
use secure_router_tests::ledger::Ledger;
use secure_router_tests::process::Processes;
use secure_router_tests::{Device, examples, session_with};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::Barrier;
use tokio::task::JoinSet;

const NANO: Slot = Slot::Model(0);
/// Words of work space with which the largest model does not fit: its stock alone would be a gigabyte here.
const WORK_WORDS: usize = 560;

/// What all devices know.
struct World {
    exact: Exact,
    inputs: Vec<Vec<i16>>,
    address: String,
    directory: std::path::PathBuf,
}

impl World {
    fn request(&self, slot: Slot) -> Request {
        Request { slot, lambda: self.exact.pool.lambda, link: LinkProfile::UART }
    }

    async fn connect(&self, name: &str, ledger: &Ledger) -> Result<Device> {
        Device::over(session_with(&self.directory, name, ledger.clone(), WORK_WORDS)?, &self.address).await
    }
}

fn size(name: &str, default: usize) -> usize {
    std::env::var(name).map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is not a number")))
}

/// What one phase took.
struct Taken {
    all: Duration,
    prepare: Vec<Duration>,
    answer: Vec<Duration>,
}

/// One device's part of a phase: its questions, each prepared first.
async fn questions(world: &World, number: usize, count: usize) -> Result<(Vec<Duration>, Vec<Duration>)> {
    let name = format!("d{number}");
    let (key, ledger) =
        (public_key(&world.directory, &name)?, Ledger::open(&world.directory.join(format!("c-{name}")))?);
    let mut device = world.connect(&name, &ledger).await?;
    let (mut prepare, mut answer) = (Vec::new(), Vec::new());
    for question in 0..count {
        let request = world.request([Slot::Router, NANO][question % 2]);
        let input = &world.inputs[(number * 31 + question * 7) % world.inputs.len()];
        let start = Instant::now();
        device.top_up(request.slot).await?;
        prepare.push(start.elapsed());
        ledger.take();
        let start = Instant::now();
        device.ask(request, input).await?;
        answer.push(start.elapsed());
        let logits: Vec<i64> = device.session.logits().map(i64::from).collect();
        world.exact.check(&key, request, device.allowed(), input, &ledger.take(), &logits)?;
    }
    Ok((prepare, answer))
}

/// All devices at once.
async fn phase(world: &Arc<World>, devices: usize, count: usize) -> Result<Taken> {
    let (mut tasks, together) = (JoinSet::new(), Arc::new(Barrier::new(devices)));
    let start = Instant::now();
    for number in 0..devices {
        let (world, together) = (Arc::clone(world), Arc::clone(&together));
        tasks.spawn(async move {
            together.wait().await;
            questions(&world, number, count).await.with_context(|| format!("device {number}"))
        });
    }
    let mut taken = Taken { all: Duration::ZERO, prepare: Vec::new(), answer: Vec::new() };
    while let Some(done) = tasks.join_next().await {
        let (prepare, answer) = done??;
        taken.prepare.extend(prepare);
        taken.answer.extend(answer);
    }
    taken.all = start.elapsed();
    Ok(taken)
}

/// Half of what `device` has to send next.
async fn half_a_frame(device: Device) -> Result<TcpStream> {
    let (mut session, mut stream) = device.into_parts();
    let pending = session.io().1;
    stream.write_all(&pending[..pending.len() / 2]).await?;
    Ok(stream)
}

/// Devices that send half a frame, of a preparation and of an input, and wait.
async fn fall_silent(world: &World) -> Result<[TcpStream; 2]> {
    let ledger = Ledger::forgetful();
    let mut device = world.connect("slow-0", &ledger).await?;
    device.session.prepare(NANO)?;
    let preparing = half_a_frame(device).await?;
    let mut device = world.connect("slow-1", &ledger).await?;
    device.prepare(NANO).await?;
    device.session.infer(world.request(NANO), &world.inputs[0])?;
    Ok([preparing, half_a_frame(device).await?])
}

/// Noise behind the handshake: the server hangs up.
async fn talk_garbage(world: &World) -> Result<()> {
    let (_, mut stream) = world.connect("garbage", &Ledger::forgetful()).await?.into_parts();
    // The server may have hung up before all of it is sent.
    let _ = stream.write_all(&[0x5a; 4096]).await;
    while matches!(stream.read(&mut [0; 1024]).await, Ok(1..)) {}
    Ok(())
}

/// Connections that say nothing, or nothing that is a handshake.
async fn flood(world: &World) -> Result<()> {
    let mut open = Vec::new();
    for number in 0..64 {
        let mut stream = TcpStream::connect(&world.address).await?;
        if number % 2 == 0 {
            stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await?;
        }
        open.push(stream);
    }
    Ok(())
}

/// An inference that ends behind its first answer from the server.
async fn hang_up(world: &World) -> Result<()> {
    let mut device = world.connect("hang-up", &Ledger::forgetful()).await?;
    device.top_up(NANO).await?;
    device.session.infer(world.request(NANO), &world.inputs[0])?;
    let (mut session, mut stream) = device.into_parts();
    while let pending @ [_, ..] = session.io().1 {
        stream.write_all(pending).await?;
        let count = pending.len();
        session.sent(count)?;
    }
    stream.read_exact(&mut [0; 64]).await?;
    Ok(())
}

/// Repeats an attack until the task ends, and counts.
async fn again<F: Future<Output = Result<()>>>(times: Arc<AtomicUsize>, attack: impl Fn() -> F) {
    loop {
        attack().await.expect("the server serves the hostile device too");
        times.fetch_add(1, Ordering::Relaxed);
        tokio::task::yield_now().await;
    }
}

fn print(name: &str, taken: &mut Taken, alone: Option<&Taken>) {
    let percentile = |times: &[Duration], percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    let row = |times: &mut Vec<Duration>| {
        times.sort();
        [50, 90, 99, 100].map(|percent| format!("{:8.1}", percentile(times, percent))).concat()
    };
    let rate = |taken: &Taken| taken.answer.len() as f64 / taken.all.as_secs_f64();
    let (prepare, answer) = (row(&mut taken.prepare), row(&mut taken.answer));
    let ratio = alone.map_or_else(String::new, |alone| {
        format!(
            "{:6.2} {:6.2} {:6.2}",
            rate(taken) / rate(alone),
            percentile(&taken.answer, 50) / percentile(&alone.answer, 50),
            percentile(&taken.answer, 99) / percentile(&alone.answer, 99)
        )
    });
    println!("{name:8} {:8.1} {prepare} {answer} {ratio}", rate(taken));
}

fn provisioned(devices: usize) -> Vec<String> {
    let others = ["slow-0", "slow-1", "garbage", "hang-up"].map(str::to_owned);
    (0..devices).map(|number| format!("d{number}")).chain(others).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_devices_get_right_answers_beside_slow_and_hostile_ones() -> Result<()> {
    let (devices, count) = (size("LOAD_DEVICES", 200), size("LOAD_QUESTIONS", 2));
    let processes = Processes::start(Path::new(env!("CARGO_BIN_EXE_secure-router")), &provisioned(devices))?;
    let directory = processes.directory().to_owned();
    let world =
        World { exact: Exact::of(&directory)?, inputs: examples()?.inputs, address: processes.address(), directory };
    let world = Arc::new(world);

    println!("{devices} devices, {count} questions each; ms, percentiles 50, 90, 99, 100; ratios to `nobody`");
    println!("beside   answers/s prepare{:25} answer{:26} rate    p50    p99", "", "");
    // The first time each device's programs are registered with the dealer, and more is prepared.
    let mut first = phase(&world, devices, count).await?;
    print("first", &mut first, None);
    let mut alone = phase(&world, devices, count).await?;
    print("nobody", &mut alone, None);

    let silent = fall_silent(&world).await?;
    let mut slow = phase(&world, devices, count).await?;
    print("slow", &mut slow, Some(&alone));

    let mut attacks = JoinSet::new();
    let times: [Arc<AtomicUsize>; 3] = Default::default();
    let [garbage, floods, hang_ups] = times.clone();
    let [a, b, c] = [(); 3].map(|()| Arc::clone(&world));
    attacks.spawn(async move { again(garbage, || talk_garbage(&a)).await });
    attacks.spawn(async move { again(floods, || flood(&b)).await });
    attacks.spawn(async move { again(hang_ups, || hang_up(&c)).await });
    let mut hostile = phase(&world, devices, count).await?;
    print("hostile", &mut hostile, Some(&alone));
    attacks.abort_all();
    while let Some(ended) = attacks.join_next().await {
        assert!(ended.is_err_and(|error| error.is_cancelled()), "an attack ended by itself");
    }
    let times = times.map(|times| times.load(Ordering::Relaxed));
    println!("garbage, floods of 64, hang-ups: {times:?}");
    assert!(times.iter().all(|times| *times > 0), "{times:?}");
    drop(silent);
    for taken in [first, alone, slow, hostile] {
        assert_eq!(taken.answer.len(), devices * count);
    }
    Ok(())
}

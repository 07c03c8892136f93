//! `secure-router prepare` and `secure-router device`: the desktop device.

mod batch;

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use secure_router::board::{self, Board, Line, Stopwatch};
use secure_router::device::{self, FileCounters, run};
use secure_router::examples::Examples;
use secure_router::link::Moved;
use secure_router::pool::slot_name;
use secure_router::provision::{self, DeviceFile, random};
use secure_router_core::circuit::Slot;
use secure_router_core::quota::Quotas;
use secure_router_core::routing::Routing;
use secure_router_core::session::{
    DeviceIdentity, DeviceMemory, DeviceSession, Event, LinkProfile, RECOMMENDED_LAMBDA, Request,
};
use serde::{Deserialize, Serialize};
use tokio::net::TcpStream;

/// Tokens masked at a time: a quarter of a 16-token model, as the firmware has it.
pub(crate) const TILE: u16 = 4;
/// Words of work space, as the firmware has it.
const WORK_WORDS: usize = 4096;
/// Most values of an input, as the firmware has it.
const INPUT_VALUES: usize = 1024;

#[derive(Args)]
pub(crate) struct Connection {
    /// The device's key file.
    #[arg(long, default_value = "keys/device-desktop.json")]
    keys: PathBuf,
    /// The device's non-volatile counters; beside the key file, with its name, unless given. A board's are of another form:
    /// a board has a key of its own.
    #[arg(long)]
    counters: Option<PathBuf>,
    /// The server's address.
    #[arg(long, default_value = "127.0.0.1:7430")]
    server: String,
    /// Tokens masked at a time: more take memory and save computing.
    #[arg(long, default_value_t = TILE)]
    tile: u16,
    /// Words of work space.
    #[arg(long, default_value_t = WORK_WORDS)]
    work_words: usize,
    /// The least private routing to take part in: `open`, `private:EPSILON` or `device`. The key file's own
    /// holds if that is more private.
    #[arg(long, default_value = "open", value_parser = crate::policy::routing)]
    routing: Routing,
    /// Seconds that the server may be silent.
    #[arg(long, default_value_t = device::PATIENCE.as_secs(), value_parser = clap::value_parser!(u64).range(1..=86400))]
    timeout_s: u64,
}

#[derive(Args)]
pub(crate) struct Prepare {
    #[command(flatten)]
    connection: Connection,
    /// Inferences to prepare, per program.
    #[arg(long, default_value_t = 8)]
    count: u32,
    /// Programs to prepare for: model names, or `router`; all by default.
    #[arg(long)]
    program: Vec<String>,
}

#[derive(Args)]
pub(crate) struct Device {
    #[command(flatten)]
    connection: Connection,
    /// File of inputs (safetensors with I8 `inputs` and U8 `labels`).
    #[arg(long, default_value = crate::demo::TEST)]
    inputs: PathBuf,
    /// A text to classify instead, for a pool that takes text; may be given several times. It stays on this machine.
    #[arg(long, conflicts_with_all = ["inputs", "from", "count", "step", "device"])]
    text: Vec<String>,
    /// A window of a motion sensor to classify instead, for a pool that takes such: a file of 128 lines of acceleration
    /// in g and rotation in rad/s, 50 a second. It stays on this machine.
    #[arg(long, conflicts_with_all = ["inputs", "from", "count", "step", "device", "text"])]
    motion: Option<PathBuf>,
    /// First input.
    #[arg(long, default_value_t = 0)]
    from: usize,
    /// Inputs to classify.
    #[arg(long, default_value_t = 1)]
    count: usize,
    /// Every how many inputs one is taken.
    #[arg(long, default_value_t = 1)]
    step: usize,
    /// What answers: model names, or `router`; each input goes to each of them.
    #[arg(long, default_value = "router")]
    program: Vec<String>,
    /// Weight of cost in the router's choice, in 1/256; what the server's pool recommends unless given. 0 asks for
    /// accuracy whatever it costs.
    #[arg(long, default_value_t = RECOMMENDED_LAMBDA, hide_default_value = true)]
    lambda: u16,
    /// The link that the router reckons with: uart, ble, lan, or BYTES_PER_SECOND,ROUND_TRIP_MS.
    #[arg(long, default_value = "uart", value_parser = crate::links::parse)]
    link: LinkProfile,
    /// Fail on an empty stock instead of preparing on demand.
    #[arg(long, conflicts_with = "device")]
    no_prepare: bool,
    /// Inferences of each model per batch, cheapest first, as in 12,3,1: the routes of a batch stay on the device,
    /// which makes exactly these inferences. For a server with `--routing device`.
    #[arg(long, value_parser = crate::policy::quotas, conflicts_with_all = ["program", "device"])]
    quota: Option<Quotas>,
    /// Inputs of a batch; as many as there are inferences by default. Fewer leave room for the routes.
    #[arg(long, requires = "quota")]
    batch: Option<usize>,
    /// Batches of one input and one inference of each model.
    #[arg(long, conflicts_with_all = ["quota", "program", "device"])]
    hidden: bool,
    /// Print a line of JSON per answer.
    #[arg(long)]
    json: bool,
    /// A board in QEMU instead of this machine: qemu:BOARD. It has buffers of its own.
    #[arg(long, value_parser = board::parse, conflicts_with_all = ["tile", "work_words"])]
    device: Option<Board>,
}

/// One answer, and what it took as the device measured it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Answer {
    pub(crate) index: usize,
    pub(crate) program: String,
    /// The model that answered.
    pub(crate) model: String,
    pub(crate) class: usize,
    pub(crate) logits: Vec<i32>,
    pub(crate) online: Moved,
    pub(crate) offline: Moved,
    pub(crate) latency_ms: f64,
}

type Session<'b> = DeviceSession<'b, FileCounters>;

/// A connected device and what preparing each program took.
struct Party<'b> {
    session: Session<'b>,
    stream: TcpStream,
    moved: Moved,
    patience: Duration,
    offline: Vec<(Slot, Moved)>,
}

impl Connection {
    /// Two devices must not share counters, nor one device have two of them: they go with the key.
    fn counters(&self) -> PathBuf {
        self.counters.clone().unwrap_or_else(|| self.keys.with_extension("counters"))
    }

    /// Connects, and hands the device to `work`.
    fn with<T>(&self, work: impl AsyncFnOnce(&mut Party<'_>) -> Result<T>) -> Result<T> {
        let keys: DeviceFile = provision::read(&self.keys)?;
        let counters = FileCounters::open(&self.counters())?;
        let (mut rx, mut tx) = ([0; DeviceMemory::FRAME_BYTES], [0; DeviceMemory::FRAME_BYTES]);
        let (mut space, mut input) = (vec![0; self.work_words], vec![0; INPUT_VALUES]);
        let (secret, seeds) = (keys.secret()?, keys.seeds());
        let routing = keys.no_less_private(self.routing).routing();
        let identity = DeviceIdentity { secret: &secret, server: keys.server(), seeds: &seeds, routing };
        let memory = DeviceMemory { rx: &mut rx, tx: &mut tx, work: &mut space, input: &mut input };
        crate::runtime()?.block_on(async {
            let patience = Duration::from_secs(self.timeout_s);
            let stream = tokio::time::timeout(patience, TcpStream::connect(&self.server))
                .await
                .unwrap_or_else(|silent| Err(silent.into()))
                .with_context(|| format!("cannot reach the server at {}", self.server))?;
            stream.set_nodelay(true)?;
            let session = DeviceSession::connect(identity, memory, self.tile, counters, &mut random())?;
            let mut party = Party { session, stream, moved: Moved::default(), patience, offline: Vec::new() };
            match party.event().await? {
                Event::Ready => {}
                event => bail!("the server began with {event:?}"),
            }
            work(&mut party).await
        })
    }
}

impl Party<'_> {
    async fn event(&mut self) -> Result<Event> {
        Ok(run(&mut self.stream, &mut self.session, &mut self.moved, self.patience).await?)
    }

    /// The programs of these names; all for no name.
    fn slots(&self, names: &[String]) -> Result<Vec<Slot>> {
        let pool = self.session.pool().context("not connected")?;
        if names.is_empty() {
            return Ok(pool.slots().collect());
        }
        let find = |name: &String| {
            pool.slots().find(|slot| slot_name(pool, *slot) == *name).with_context(|| {
                let have: Vec<_> = pool.slots().map(|slot| slot_name(pool, slot)).collect();
                format!("the pool has no `{name}`, it has {}", have.join(", "))
            })
        };
        names.iter().map(find).collect()
    }

    fn name(&self, slot: Slot) -> String {
        self.session.pool().map_or_else(String::new, |pool| slot_name(pool, slot))
    }

    async fn prepare(&mut self, slot: Slot) -> Result<()> {
        let before = self.moved;
        self.session.prepare(slot).with_context(|| format!("cannot prepare {}", self.name(slot)))?;
        match self.event().await? {
            Event::Prepared(_) => {}
            Event::Refused(refusal) => bail!("cannot prepare {}: {refusal}", self.name(slot)),
            event => bail!("the server answered a preparation with {event:?}"),
        }
        let moved = since(self.moved, before);
        self.offline.retain(|(have, _)| *have != slot);
        self.offline.push((slot, moved));
        Ok(())
    }

    /// Prepares what `request` may use, where nothing is in stock.
    async fn top_up(&mut self, slot: Slot) -> Result<()> {
        let pool = self.session.pool().context("not connected")?;
        let wanted = match slot {
            Slot::Router => pool.slots().filter(|slot| !pool.router_answers(*slot)).collect(),
            Slot::Model(_) => vec![slot],
        };
        for slot in wanted {
            if self.session.ready(slot) == 0 {
                self.prepare(slot).await?;
            }
        }
        Ok(())
    }

    async fn answer(&mut self, index: usize, request: Request, input: &[i16]) -> Result<Answer> {
        let before = self.moved;
        let start = Instant::now();
        self.session.infer(request, input)?;
        loop {
            match self.event().await? {
                Event::Routed(_) => {}
                Event::Answer => break,
                Event::Refused(refusal) => bail!("refused: {refusal}"),
                event => bail!("the server answered with {event:?}"),
            }
        }
        let latency_ms = start.elapsed().as_secs_f64() * 1e3;
        let model = self.session.answered_by().context("nobody answered")?;
        let own = self.session.pool().is_some_and(|pool| pool.router_answers(model));
        let used = [request.slot, model];
        let used = if request.slot == model || own { &used[..1] } else { &used[..] };
        let mut offline = Moved::default();
        for (_, moved) in self.offline.iter().filter(|(slot, _)| used.contains(slot)) {
            offline.sent += moved.sent;
            offline.received += moved.received;
        }
        Ok(Answer {
            index,
            program: self.name(request.slot),
            model: self.name(model),
            class: self.session.class().context("no answer")?,
            logits: self.session.logits().collect(),
            online: since(self.moved, before),
            offline,
            latency_ms,
        })
    }
}

fn since(now: Moved, before: Moved) -> Moved {
    Moved { received: now.received - before.received, sent: now.sent - before.sent }
}

impl Prepare {
    pub(crate) fn run(self) -> Result<()> {
        self.connection.with(async |party| {
            let slots = party.slots(&self.program)?;
            let bar = progress(u64::from(self.count) * slots.len() as u64);
            for slot in &slots {
                for _ in 0..self.count {
                    party.prepare(*slot).await?;
                    bar.inc(1);
                }
            }
            bar.finish_and_clear();
            for slot in slots {
                say!("{}: {} inferences in stock", party.name(slot), party.session.ready(slot));
            }
            Ok(())
        })
    }
}

impl Device {
    pub(crate) fn run(self) -> Result<()> {
        if let Some(board) = self.device {
            return self.run_board(board);
        }
        self.connection.with(async |party| {
            let pool = party.session.pool().context("not connected")?;
            let examples = match (&self.motion, self.text.as_slice()) {
                (Some(window), _) => Examples::of_motion(window, pool)?,
                (None, []) => Examples::load(&self.inputs, pool.input_len)?,
                (None, texts) => Examples::of_texts(texts, pool)?,
            };
            let (slots, chosen) = (party.slots(&self.program)?, self.chosen(&examples)?);
            if let Some(quotas) = self.quotas(party)? {
                return self.batches(party, &examples, &chosen, quotas).await;
            }
            if pool.routing == Routing::Device && slots.contains(&Slot::Router) {
                bail!("the router tells this device alone: use --quota or --hidden, or name a model with --program");
            }
            // One program after another: the server's store cleans up behind a large item in the transaction
            // after it, which would be counted against whatever follows.
            for slot in &slots {
                for (index, input) in &chosen {
                    if !self.no_prepare {
                        party.top_up(*slot).await?;
                    }
                    let request = Request { slot: *slot, lambda: self.lambda, link: self.link };
                    let answer = party.answer(*index, request, input).await?;
                    self.print(&answer, &examples)?;
                }
            }
            Ok(())
        })
    }

    /// The inputs to classify, by their places in the file.
    fn chosen<'e>(&self, examples: &'e Examples) -> Result<Vec<(usize, &'e [i16])>> {
        if self.motion.is_some() || !self.text.is_empty() {
            return Ok(examples.inputs.iter().map(Vec::as_slice).enumerate().collect());
        }
        let step = self.step.max(1);
        let last = self.from.saturating_add(self.count.saturating_sub(1).saturating_mul(step));
        if last >= examples.inputs.len() {
            bail!("{} holds {} inputs, input {last} was asked for", self.inputs.display(), examples.inputs.len());
        }
        let inputs = examples.inputs.iter().map(Vec::as_slice).enumerate();
        Ok(inputs.skip(self.from).step_by(step).take(self.count).collect())
    }

    fn print(&self, answer: &Answer, examples: &Examples) -> Result<()> {
        if self.json {
            say!("{}", serde_json::to_string(answer)?);
        } else {
            let truth = examples.labels.get(answer.index).map_or_else(String::new, |label| format!(" (label {label})"));
            say!(
                "input {}: class {}{truth} by {}, {} B up, {} B down, {:.1} ms",
                answer.index,
                answer.class,
                answer.model,
                answer.online.sent,
                answer.online.received,
                answer.latency_ms
            );
        }
        Ok(())
    }

    /// The same by firmware in QEMU, which prepares on demand. Its times are those of the emulation.
    fn run_board(&self, board: Board) -> Result<()> {
        let Connection { keys, server, timeout_s, routing, .. } = &self.connection;
        let examples = Examples::of_any_length(&self.inputs)?;
        let chosen = self.chosen(&examples)?;
        board::build(board)?;
        let directory = crate::parties::tempfile()?;
        let inputs: Vec<&[i16]> = chosen.iter().map(|(_, input)| *input).collect();
        let keys: DeviceFile = provision::read(keys)?;
        let files = board::Files::write(
            directory.path(),
            &keys.no_less_private(*routing),
            &self.connection.counters(),
            &inputs,
        )?;
        let plan = board::Plan {
            programs: self.program.clone(),
            lambda: self.lambda,
            link: self.link,
            patience: Duration::from_secs(*timeout_s),
            ..board::Plan::new(board)
        };
        let mut running = files.start_fresh(&plan, server)?;

        let (mut names, mut own) = (Vec::new(), None);
        let mut prepared: Vec<(Slot, Moved)> = Vec::new();
        let mut watch = Stopwatch::start();
        let mut routing_ms = 0.0;
        while let Some(line) = running.next_line()? {
            let lap = watch.lap();
            match line {
                Line::Program(slot, name) => names.push((slot, name)),
                Line::Own(slot) => own = Some(slot),
                Line::Prepared(slot, moved) => {
                    prepared.retain(|(have, _)| *have != slot);
                    prepared.push((slot, moved));
                }
                Line::Routed(_) => routing_ms = lap,
                Line::Answer { index, asked, model, class, moved, logits } => {
                    let name = |slot: Slot| {
                        names.iter().find(|(have, _)| *have == slot).map(|(_, name)| name.clone()).unwrap_or_default()
                    };
                    let mut offline = Moved::default();
                    let run = |slot: Slot| slot == asked || slot == model && own != Some(model);
                    for (_, moved) in prepared.iter().filter(|(slot, _)| run(*slot)) {
                        offline.sent += moved.sent;
                        offline.received += moved.received;
                    }
                    let (index, _) = chosen.get(index).context("the board answered an input it was not given")?;
                    let answer = Answer {
                        index: *index,
                        program: name(asked),
                        model: name(model),
                        class,
                        logits,
                        online: moved,
                        offline,
                        latency_ms: std::mem::take(&mut routing_ms) + lap,
                    };
                    self.print(&answer, &examples)?;
                }
                Line::Unfit(_) | Line::Stack(_) => {}
            }
        }
        eprint!("{}", board::finish(running)?.console);
        Ok(())
    }
}

/// A progress bar on standard error, drawn on a terminal only.
pub(crate) fn progress(total: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{elapsed_precise} {wide_bar} {pos}/{len} {msg}");
    ProgressBar::new(total).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

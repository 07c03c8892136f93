//! `secure-router measure`: what the device party takes on each board, on real inputs against the
//! real server, in one table.
//!
//! Instructions are the emulator's count of what the firmware executes in marked spans, without
//! the UART. They must not depend on any secret: two devices, of other keys and with other inputs,
//! but at the same counters, must count the same in every span that runs the same program, or the
//! command fails.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::Args;
use secure_router::board::{self, Board, Files, Line, Plan, Sizes};
use secure_router::examples::Examples;
use secure_router::pool::Pool;
use secure_router::provision;
use secure_router_core::circuit::Slot;

use crate::parties::{Process, party, tempfile};

#[derive(Args)]
pub(crate) struct Measure {
    /// The boards; all by default.
    boards: Vec<String>,
    /// The trained pool.
    #[arg(long, default_value = crate::demo::POOL)]
    pool: PathBuf,
    /// The test split.
    #[arg(long, default_value = crate::demo::TEST)]
    inputs: PathBuf,
    /// Texts to give instead, for a pool that takes text.
    #[arg(long, conflicts_with = "inputs")]
    text: Vec<String>,
    /// Test inputs to give to every program, spread over the split.
    #[arg(long, default_value_t = 3)]
    count: usize,
    /// The plugin that counts instructions (targets/count).
    #[arg(long)]
    plugin: PathBuf,
    /// Count only the smaller programs, for a quick look: names, all that fit by default.
    #[arg(long)]
    program: Vec<String>,
}

/// A span's kind: its phase, what was asked, and who answered.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Span {
    Offline(Slot),
    /// The router's part, up to its choice.
    Route(Slot),
    /// A model's part.
    Answer(Slot, Slot),
}

fn check(all: &[Figures]) -> Result<()> {
    let mut wrong = Vec::new();
    for figures in all {
        let name = figures.board.name;
        let [one, other] = &figures.counts;
        let mut same = BTreeSet::new();
        for ((span, count), (other_span, other_count)) in one.iter().zip(other) {
            if span == other_span && count == other_count {
                same.insert(span.kind());
            } else if span == other_span {
                let message = "the instructions depend on the input or the keys";
                wrong.push(format!("{name}: {message}: {count} and {other_count} for {span:?}"));
            }
        }
        let every: BTreeSet<_> = one.iter().map(|(span, _)| span.kind()).collect();
        for kind in every.difference(&same) {
            wrong.push(format!("{name}: nothing to compare for {kind:?}, or nothing equal"));
        }
    }
    if wrong.is_empty() { Ok(()) } else { bail!("{}", wrong.join("\n")) }
}

impl Span {
    /// What two inputs must have in common to be compared: the router may choose as it likes.
    fn kind(&self) -> (&'static str, Slot) {
        match self {
            Self::Offline(slot) => ("offline", *slot),
            Self::Route(_) => ("online", Slot::Router),
            Self::Answer(asked, _) => ("online, with the model", *asked),
        }
    }
}

struct Figures {
    board: Board,
    sizes: Sizes,
    stack: usize,
    unfit: Vec<Slot>,
    names: Vec<(Slot, String)>,
    /// Each span and what it counted, of two devices.
    counts: [Vec<(Span, u64)>; 2],
}

impl Measure {
    pub(crate) fn run(self) -> Result<()> {
        let boards = if self.boards.is_empty() {
            Board::ALL.to_vec()
        } else {
            self.boards.iter().map(|name| Ok(Board::named(name)?)).collect::<Result<Vec<_>>>()?
        };
        let plugin = self.plugin.canonicalize().with_context(|| format!("no plugin at {}", self.plugin.display()))?;
        ensure!(board::can_count(&plugin), "this QEMU does not take the counting plugin; version 7 or 8 does");
        let pool = Pool::load(&self.pool)?;
        let examples = match self.text.as_slice() {
            [] => Examples::load(&self.inputs, pool.spec.input_len)?,
            texts => Examples::of_texts(texts, &pool.spec)?,
        };
        let total = examples.inputs.len();
        ensure!((2..=total).contains(&self.count), "--count must be between 2 and the number of inputs, {total}");
        let step = total / self.count;
        let inputs: Vec<&[i16]> = examples.inputs.iter().map(Vec::as_slice).step_by(step).take(self.count).collect();

        let onward = pool.least_sure(&examples.inputs)?;
        if onward.is_none() {
            eprintln!("the router goes on to another model with none of the inputs");
        }

        let directory = tempfile()?;
        let directory = directory.path();
        let keys = directory.join("keys");
        for board in &boards {
            for device in 0..3 {
                provision::provision(&keys, &format!("{}-{device}", board.name))?;
            }
        }
        let (server_keys, dealer_keys, _) = provision::paths(&keys, "");
        let mut dealer = party("deal");
        dealer
            .arg("--listen=127.0.0.1:0")
            .arg("--keys")
            .arg(dealer_keys)
            .arg("--store")
            .arg(directory.join("dealer.redb"));
        let (_dealer, dealer) = Process::listening(&mut dealer)?;
        let mut server = party("serve");
        server.args(["--listen=127.0.0.1:0", "--dealer", &dealer, "--keys"]).arg(server_keys);
        server.arg("--pool").arg(&self.pool).arg("--stock").arg(directory.join("stock.redb"));
        let (_server, server) = Process::listening(&mut server)?;

        let mut all = Vec::new();
        for board in boards {
            eprintln!("{board}: {} inputs to each program", inputs.len());
            board::build(board)?;
            let plan = Plan {
                programs: self.program.clone(),
                plugin: Some(plugin.clone()),
                patience: Duration::from_secs(300),
                // At full cost nearly all inputs go to the cheapest model, so that two devices' spans can be compared.
                lambda: 256,
                ..Plan::new(board)
            };
            let mut figures = Figures::of(board)?;
            let files = |device: usize, inputs: &[&[i16]]| {
                let name = format!("{}-{device}", board.name);
                let here = directory.join(&name);
                std::fs::create_dir(&here)?;
                let (_, _, key) = provision::paths(&keys, &name);
                Files::write(&here, &provision::read(&key)?, &here.join("counters"), inputs)
            };
            let mut inputs = inputs.clone();
            for device in 0..2 {
                let counts = figures.add(&files(device, &inputs)?, &plan, &server)?;
                if let Some(slot) = figures.counts.get_mut(device) {
                    *slot = counts;
                }
                inputs.rotate_left(1);
            }
            // Where the router goes on to another model, that takes more of the stack.
            if let Some(input) = onward {
                let routed = Plan { programs: vec!["router".to_owned()], plugin: None, lambda: 0, ..plan };
                figures.stack_of(&files(2, &[input])?, &routed, &server)?;
            }
            all.push(figures);
        }
        let printed = print(&all);
        check(&all)?;
        printed
    }
}

impl Figures {
    fn of(board: Board) -> Result<Self> {
        Ok(Self {
            board,
            sizes: Sizes::of(&board::firmware(board))?,
            stack: 0,
            unfit: Vec::new(),
            names: Vec::new(),
            counts: Default::default(),
        })
    }

    /// Runs a device for its stack alone.
    fn stack_of(&mut self, files: &Files, plan: &Plan, server: &str) -> Result<()> {
        let mut running = files.start_fresh(plan, server)?;
        let mut routed = false;
        while let Some(line) = running.next_line()? {
            match line {
                Line::Routed(_) => routed = true,
                Line::Stack(bytes) => self.stack = self.stack.max(bytes),
                _ => {}
            }
        }
        board::finish(running)?;
        ensure!(routed, "the router went on to no other model with the input that it is least sure of");
        Ok(())
    }

    /// Runs a device, and returns its spans.
    fn add(&mut self, files: &Files, plan: &Plan, server: &str) -> Result<Vec<(Span, u64)>> {
        let mut running = files.start_fresh(plan, server)?;
        let mut spans = Vec::new();
        (self.names, self.unfit) = Default::default();
        let mut own = None;
        while let Some(line) = running.next_line()? {
            match line {
                Line::Program(slot, name) => self.names.push((slot, name)),
                Line::Own(slot) => own = Some(slot),
                Line::Unfit(slot) => self.unfit.push(slot),
                Line::Prepared(slot, _) => spans.push(Span::Offline(slot)),
                Line::Routed(model) => spans.push(Span::Route(model)),
                // A router that answers itself has chosen and answered in one.
                Line::Answer { asked: Slot::Router, model, .. } if own == Some(model) => spans.push(Span::Route(model)),
                Line::Answer { asked, model, .. } => spans.push(Span::Answer(asked, model)),
                Line::Stack(bytes) => self.stack = self.stack.max(bytes),
            }
        }
        board::finish(running)?;
        let counted = files.spans()?;
        ensure!(counted.len() == spans.len(), "{} spans were counted, {} reported", counted.len(), spans.len());
        let matched = spans.into_iter().zip(counted).map(|(span, (offline, count))| {
            let right = offline == matches!(span, Span::Offline(_));
            right.then_some((span, count)).context("a span was counted in another phase than it was reported in")
        });
        matched.collect()
    }
}

fn print(all: &[Figures]) -> Result<()> {
    say!(
        "{:<14} {:<11} {:>7} {:>7} {:>7} {:>7}  {:<8} {:>13} {:>13}",
        "board",
        "CPU",
        "flash",
        "static",
        "stack",
        "RAM",
        "program",
        "offline",
        "online"
    );
    for figures in all {
        let Figures { board, sizes, stack, .. } = figures;
        let (cpu, ram) = (board.cpu(), sizes.ram as usize + stack);
        let mut left = format!("{:<14} {cpu:<11} {:>7} {:>7} {stack:>7} {ram:>7}", board.name, sizes.flash, sizes.ram);
        for (slot, name) in &figures.names {
            let (mut offline, mut online) = (None, None);
            for (span, count) in figures.counts.iter().flatten() {
                let count = Some(*count);
                match span {
                    Span::Offline(prepared) if prepared == slot => offline = offline.max(count),
                    Span::Answer(asked, _) if asked == slot && *slot != Slot::Router => online = online.max(count),
                    Span::Route(_) if *slot == Slot::Router => online = online.max(count),
                    _ => {}
                }
            }
            let number = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), grouped);
            if figures.unfit.contains(slot) {
                say!("{left}  {name:<8} {:>13}", "does not fit");
            } else {
                say!("{left}  {name:<8} {:>13} {:>13}", number(offline), number(online));
            }
            left = " ".repeat(left.len());
        }
    }
    say!(
        "\nbytes of flash, static RAM, peak stack and both; instructions per inference before and after the input\n\
         is known, without the UART, the longest; the router's until it has chosen"
    );
    Ok(())
}

/// With a space between thousands.
fn grouped(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
}

//! Batches under device routing: all inputs are routed first, then the device asks as its quotas say.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use secure_router::examples::Examples;
use secure_router::link::Moved;
use secure_router_core::circuit::Slot;
use secure_router_core::quota::{Quotas, gather, keep};
use secure_router_core::routing::Routing;
use secure_router_core::session::{Event, Request};

use super::{Answer, Device, Party, since};

impl Device {
    /// The quotas that were asked for, and inputs of a batch; none for answers one by one.
    ///
    /// # Errors
    /// A pool whose routing does not go with them.
    pub(super) fn quotas(&self, party: &Party<'_>) -> Result<Option<(Quotas, usize)>> {
        let pool = party.session.pool().context("not connected")?;
        let models = pool.models.len();
        let quotas = if self.hidden { Some(Quotas::new(&vec![1; models])?) } else { self.quota };
        let Some(quotas) = quotas else { return Ok(None) };
        if pool.routing != Routing::Device || pool.router.is_none() {
            bail!(
                "--quota and --hidden need a server with a router and `--routing device`, this one's is {}",
                pool.routing
            );
        }
        let asked = (0..quotas.places()).filter_map(|place| quotas.model(place));
        for model in asked {
            let slot = Slot::Model(model);
            party.session.fits(slot).with_context(|| format!("the quotas ask for model {model}"))?;
        }
        let batch = if self.hidden { 1 } else { self.batch.unwrap_or(usize::from(quotas.places())) };
        ensure!(
            batch > 0 && batch <= usize::from(quotas.places()),
            "a batch has between 1 and {} inputs",
            quotas.places()
        );
        Ok(Some((quotas, batch)))
    }

    pub(super) async fn batches(
        &self,
        party: &mut Party<'_>,
        examples: &Examples,
        inputs: &[(usize, &[i16])],
        (quotas, size): (Quotas, usize),
    ) -> Result<()> {
        for batch in inputs.chunks(size) {
            for answer in self.batch(party, batch, &quotas).await? {
                self.print(&answer, examples)?;
            }
        }
        Ok(())
    }

    /// Prepares on demand if nothing is ready. Whether anything is, the server knows.
    async fn stocked(&self, party: &mut Party<'_>, slot: Slot) -> Result<()> {
        if !self.no_prepare && party.session.ready(slot) == 0 {
            party.prepare(slot).await?;
        }
        Ok(())
    }

    /// Answers a batch. What it took is told in equal parts.
    async fn batch(&self, party: &mut Party<'_>, inputs: &[(usize, &[i16])], quotas: &Quotas) -> Result<Vec<Answer>> {
        let mut wanted = vec![Slot::Router; inputs.len()];
        wanted.extend((0..quotas.places()).filter_map(|place| quotas.model(place)).map(Slot::Model));
        if !self.no_prepare {
            for slot in &wanted {
                let needed = wanted.iter().filter(|have| *have == slot).count();
                while (party.session.ready(*slot) as usize) < needed {
                    let before = party.session.ready(*slot);
                    party.prepare(*slot).await?;
                    // Counters were lost: what is before the gap is used up first, below, then what is behind it.
                    if party.session.ready(*slot) <= before {
                        break;
                    }
                }
            }
        }
        let (before, start) = (party.moved, Instant::now());
        let request = |slot| Request { slot, lambda: self.lambda, link: self.link };
        let (mut routes, mut flat) = (Vec::new(), Vec::new());
        for (_, input) in inputs {
            self.stocked(party, Slot::Router).await?;
            party.session.infer(request(Slot::Router), input)?;
            match party.event().await? {
                Event::Advised(Slot::Model(model)) => routes.push(model),
                Event::Refused(refusal) => bail!("refused: {refusal}"),
                event => bail!("the server answered with {event:?}"),
            }
            flat.extend_from_slice(input);
        }
        let (mut places, mut classes) = (vec![0; inputs.len()], vec![0; inputs.len()]);
        quotas.assign(&routes, &mut places)?;
        let mut input = vec![0; flat.len() / inputs.len().max(1)];
        for place in 0..quotas.places() {
            let slot = Slot::Model(quotas.model(place).context("a place without a model")?);
            gather(&places, place, &flat, &mut input);
            self.stocked(party, slot).await?;
            let answer = party.answer(0, request(slot), &input).await?;
            keep(&places, place, answer.class as u16, &mut classes);
        }
        let parts = inputs.len().max(1) as u64;
        let share = |moved: Moved| Moved { sent: moved.sent / parts, received: moved.received / parts };
        let (online, latency_ms) = (since(party.moved, before), start.elapsed().as_secs_f64() * 1e3);
        let mut offline = Moved::default();
        for slot in &wanted {
            for (_, moved) in party.offline.iter().filter(|(have, _)| have == slot) {
                offline.sent += moved.sent;
                offline.received += moved.received;
            }
        }
        let answers = inputs.iter().zip(places.iter().zip(classes)).map(|((index, _), (place, class))| Answer {
            index: *index,
            program: party.name(Slot::Router),
            model: quotas.model(*place).map_or_else(String::new, |model| party.name(Slot::Model(model))),
            class: usize::from(class),
            logits: Vec::new(),
            online: share(online),
            offline: share(offline),
            latency_ms: latency_ms / parts as f64,
        });
        Ok(answers.collect())
    }
}

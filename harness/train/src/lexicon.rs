//! The teacher of text models: which words speak for which class?
//!
//! Models know words by few numbers and have few texts to learn from. So they learn from a linear model
//! of all words, which no party ever has: it labels any mixture of words, and there is no end of texts.

use crate::data::Example;
use crate::nn::loss::softmax;
use secure_router_core::text;

/// Logarithm of the number of weights per class: collisions are few.
const BITS: u32 = 18;
const ROUNDS: usize = 300;
/// The inverse of the largest curvature: a bag has the length 1, and so has the bias.
const STEP: f64 = 1.0;
/// Weight of the squares of the weights in the loss.
const RIDGE: f64 = 3e-5;

/// Softmax regression on the words of a text, each as loud as it is telling (Wang and Manning 2012, NBSVM).
pub(crate) struct Lexicon {
    /// Words x classes.
    weights: Vec<f64>,
    /// How much more likely a word is in texts of a class than in others, as a logarithm: words x classes.
    ratios: Vec<f64>,
    bias: Vec<f64>,
}

/// Words of a text by number, with what they weigh for each class: long texts are no louder.
struct Bag {
    words: Vec<usize>,
    weights: Vec<f64>,
}

/// The numbers of the words of a text, each once.
fn numbers(bytes: &[f32]) -> Vec<usize> {
    let bytes: Vec<u8> = bytes.iter().map(|&b| b as u8).collect();
    let mut words = Vec::new();
    text::words(&bytes, |hash, ends| {
        if ends != 0 {
            words.push((hash >> (32 - BITS)) as usize);
        }
    });
    words.sort_unstable();
    words.dedup();
    words
}

/// Logarithms of how much likelier each word is in texts of a class than in others.
fn ratios(texts: &[Vec<usize>], examples: &[&Example], classes: usize) -> Vec<f64> {
    let mut counts = vec![1.0; classes << BITS];
    for (words, example) in texts.iter().zip(examples) {
        words.iter().for_each(|w| counts[w * classes + example.label] += 1.0);
    }
    let mut totals = vec![0.0; classes];
    for row in counts.chunks_exact(classes) {
        totals.iter_mut().zip(row).for_each(|(total, count)| *total += count);
    }
    let all: f64 = totals.iter().sum();
    let of = |row: &[f64]| {
        let sum: f64 = row.iter().sum();
        let ratio = |(count, total): (&f64, &f64)| (count / total).ln() - ((sum - count) / (all - total)).ln();
        row.iter().zip(&totals).map(ratio).collect::<Vec<f64>>()
    };
    counts.chunks_exact(classes).flat_map(of).collect()
}

impl Lexicon {
    /// Learns from `examples` by accelerated gradient descent.
    pub(crate) fn of(examples: &[&Example], classes: usize) -> Self {
        let texts: Vec<Vec<usize>> = examples.iter().map(|e| numbers(&e.values)).collect();
        let n = texts.len() as f64;
        let ratios = ratios(&texts, examples, classes);
        let mut new = Self { weights: vec![0.0; classes << BITS], ratios, bias: vec![0.0; classes] };
        let bags: Vec<Bag> = texts.into_iter().map(|words| new.bag(words)).collect();
        let mut old = new.weights.clone();
        for round in 0..ROUNDS {
            let momentum = round as f64 / (round + 3) as f64;
            for (w, old) in new.weights.iter_mut().zip(&mut old) {
                let ahead = *w + momentum * (*w - *old);
                *old = std::mem::replace(w, ahead);
            }
            let mut change = vec![0.0; new.weights.len()];
            let mut change_bias = vec![0.0; classes];
            for (bag, example) in bags.iter().zip(examples) {
                for (c, p) in new.judge(bag).into_iter().enumerate() {
                    let d = (f64::from(p) - f64::from(u8::from(c == example.label))) / n;
                    change_bias[c] += d;
                    let d = d * bag.weights[c];
                    bag.words.iter().map(|w| w * classes + c).for_each(|at| change[at] += d * new.ratios[at]);
                }
            }
            for (w, d) in new.weights.iter_mut().zip(change) {
                *w -= STEP * (d + RIDGE * *w);
            }
            for (b, d) in new.bias.iter_mut().zip(change_bias) {
                *b -= STEP * d;
            }
        }
        new
    }

    fn bag(&self, words: Vec<usize>) -> Bag {
        let classes = self.bias.len();
        let squares = |c: usize| words.iter().map(|w| self.ratios[w * classes + c].powi(2)).sum::<f64>();
        let weights = (0..classes).map(|c| squares(c).sqrt().max(1e-9).recip()).collect();
        Bag { words, weights }
    }

    fn judge(&self, Bag { words, weights }: &Bag) -> Vec<f32> {
        let classes = self.bias.len();
        let logit = |c: usize| {
            let of_word = |w: &usize| self.weights[w * classes + c] * self.ratios[w * classes + c];
            (self.bias[c] + weights[c] * words.iter().map(of_word).sum::<f64>()) as f32
        };
        softmax(&(0..classes).map(logit).collect::<Vec<_>>(), classes)
    }

    /// How likely each class is for a text.
    pub(crate) fn probabilities(&self, text: &[f32]) -> Vec<f32> {
        self.judge(&self.bag(numbers(text)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_speak_for_their_classes() {
        let example = |i: usize| {
            let text = format!("{} film {i}", ["poor", "plain", "fine"][i % 3]);
            Example { values: text.bytes().map(f32::from).collect(), label: i % 3, group: 0 }
        };
        let examples: Vec<Example> = (100..160).map(example).collect();
        let lexicon = Lexicon::of(&examples.iter().collect::<Vec<_>>(), 3);
        let probabilities = |text: &str| lexicon.probabilities(&text.bytes().map(f32::from).collect::<Vec<_>>());
        assert!(probabilities("a FINE song")[2] > 0.6);
        assert!(probabilities("plainly")[1] > 0.6);
        let torn = probabilities("poor, fine");
        assert!((torn[0] - torn[2]).abs() < 0.1 && torn[1] < 0.3, "{torn:?}");
        // Nothing known: each class as often as it occurs.
        assert!(probabilities("unheard").iter().all(|p| (p - 1.0 / 3.0).abs() < 0.02));
    }
}

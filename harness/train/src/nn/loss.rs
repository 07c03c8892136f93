//! Losses: the mean over the batch, and its gradient.

/// Cross entropy with soft targets.
pub(crate) fn cross_entropy(logits: &[f32], targets: &[f32], classes: usize) -> (f64, Vec<f32>) {
    let n = (logits.len() / classes) as f32;
    let mut probabilities = softmax(logits, classes);
    let mut loss = 0.0;
    for (p, t) in probabilities.iter_mut().zip(targets) {
        loss -= f64::from(t * p.max(1e-12).ln());
        *p = (*p - t) / n;
    }
    (loss / f64::from(n), probabilities)
}

/// Squared errors (halved) of estimates of probabilities: the gradient only, the loss is not reported.
pub(crate) fn squares_gradient(estimates: &[f32], targets: &[f32], outputs: usize) -> Vec<f32> {
    /// As steep near a half as the gradient of cross entropy by a logit would be.
    const WEIGHT: f32 = 4.0;
    let n = (estimates.len() / outputs) as f32;
    let gradient = |(&e, &t): (&f32, &f32)| WEIGHT * (e - t) / n;
    estimates.iter().zip(targets).map(gradient).collect()
}

pub(crate) fn softmax(logits: &[f32], classes: usize) -> Vec<f32> {
    let mut out = logits.to_vec();
    for row in out.chunks_exact_mut(classes) {
        let max = row.iter().copied().fold(f32::MIN, f32::max);
        for v in row.iter_mut() {
            *v = (*v - max).exp();
        }
        let sum: f32 = row.iter().sum();
        for v in row.iter_mut() {
            *v /= sum;
        }
    }
    out
}

/// Index of the largest; the first of equals.
pub(crate) fn argmax<T: PartialOrd>(row: &[T]) -> usize {
    (1..row.len()).fold(0, |best, i| if row[i] > row[best] { i } else { best })
}

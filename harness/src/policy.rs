//! Routing policies, epsilons and quotas as they are written on the command line.

use secure_router_core::quota::Quotas;
use secure_router_core::routing::{MAX_EPSILON, Routing};

/// `open`, `private:EPSILON` or `device`.
pub(crate) fn routing(text: &str) -> Result<Routing, String> {
    match (text, text.split_once(':')) {
        ("open", _) => Ok(Routing::Open),
        ("device", _) => Ok(Routing::Device),
        (_, Some(("private", text))) => match u16::try_from(epsilon(text)?) {
            Ok(epsilon @ 1..=MAX_EPSILON) => Ok(Routing::Private { epsilon }),
            _ => Err(format!("an epsilon per route is above 0 and at most {}", MAX_EPSILON / 1000)),
        },
        _ => Err("a routing policy is open, private:EPSILON or device".to_owned()),
    }
}

/// Thousandths of epsilon, from a decimal number.
pub(crate) fn epsilon(text: &str) -> Result<u32, String> {
    let (whole, part) = text.split_once('.').unwrap_or((text, "0"));
    let number = |digits: &str| digits.bytes().all(|byte| byte.is_ascii_digit()).then(|| digits.parse::<u32>().ok());
    let thousandths = match part.len() {
        1..=3 => number(&format!("{part:0<3}")).flatten(),
        _ => None,
    };
    let whole = number(whole).flatten().and_then(|whole| whole.checked_mul(1000));
    let sum = whole.zip(thousandths).and_then(|(whole, part)| whole.checked_add(part));
    sum.ok_or_else(|| "an epsilon is a number with at most three decimals".to_owned())
}

/// Inferences of each model, cheapest first, separated by commas.
pub(crate) fn quotas(text: &str) -> Result<Quotas, String> {
    let numbers: Result<Vec<u16>, _> = text.split(',').map(str::parse).collect();
    let quotas = numbers.map_err(|_| "quotas are numbers, one per model, as in 12,3,1".to_owned())?;
    Quotas::new(&quotas).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read_exactly() {
        assert_eq!(routing("open"), Ok(Routing::Open));
        assert_eq!(routing("device"), Ok(Routing::Device));
        for (text, epsilon) in [("0.5", 500), ("1", 1000), ("1.25", 1250), ("0.001", 1), ("16", 16_000)] {
            assert_eq!(routing(&format!("private:{text}")), Ok(Routing::Private { epsilon }), "{text}");
        }
        for text in ["", "closed", "private", "private:", "private:0", "private:16.001", "private:-1", "private:0.0001"]
        {
            assert!(routing(text).is_err(), "{text}");
        }
        for text in ["1.", ".5", "1e3", "+1", "4294968"] {
            assert!(epsilon(text).is_err(), "{text}");
        }
    }

    #[test]
    fn quotas_are_read_by_model() {
        assert_eq!(quotas("12,3,1").ok(), Quotas::new(&[12, 3, 1]).ok());
        assert!(quotas("1,,2").is_err() && quotas("-1").is_err() && quotas("1,1,1,1,1,1,1,1,1").is_err());
        assert!(quotas("65535,1").is_err());
    }
}

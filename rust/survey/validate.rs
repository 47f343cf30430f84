//! What must hold between the numbers of a survey file, whoever wrote it.

use super::settings::{Corpus, MAX_DOCUMENTS, Settings};
use super::stats::{Feature, SiteStats};
use super::topk::End;

/// Most tokens of one survey: histogram counts have 48 bits.
const MAX_TOKENS: u64 = (1 << 48) - 1;

fn require(holds: bool, what: impl FnOnce() -> String) -> Result<(), String> {
    if holds { Ok(()) } else { Err(what()) }
}

/// Checks the counts of documents, units and tokens.
pub fn corpus(corpus: &Corpus, settings: &Settings) -> Result<(), String> {
    require(corpus.n_documents <= MAX_DOCUMENTS, || format!("more than {MAX_DOCUMENTS} documents"))?;
    require(corpus.n_tokens <= MAX_TOKENS, || format!("more than {MAX_TOKENS} tokens"))?;
    require(corpus.n_documents <= corpus.n_units && corpus.n_units <= corpus.n_tokens, || {
        "expected at least one unit a document and one token a unit".to_owned()
    })?;
    require(settings.context > settings.prefix.len(), || "the prefix fills the context".to_owned())?;
    require(settings.histogram_every > 0, || "histogram_every is 0".to_owned())
}

/// Checks one site's statistics.
pub fn site(site: &SiteStats, corpus: &Corpus, settings: &Settings, open: bool) -> Result<(), String> {
    let (tally, name) = (&site.tally, &site.name);
    let apart = tally.n_tokens.checked_add(tally.n_sink).and_then(|n| n.checked_add(tally.n_bos));
    let prefix = corpus.n_units.checked_mul(settings.prefix.len() as u64);
    require(
        apart == Some(corpus.n_tokens)
            && prefix == Some(tally.n_prefix)
            && tally.n_units <= corpus.n_units.min(tally.n_tokens)
            && tally.n_histogram <= tally.n_tokens,
        || format!("{name}: the counts of tokens do not add up"),
    )?;
    for (j, (feature, histogram)) in site.features().zip(site.histograms()).enumerate() {
        let bad = |what: &str| format!("{name} feature {j}: {what}");
        require(histogram.total() == tally.n_histogram, || bad("the histogram's total is not the site's"))?;
        require(consistent(feature, tally.n_tokens, tally.n_units) && acts(feature), || {
            bad("its counts and extremes disagree")
        })?;
        let ends = [(End::Top, feature.max), (End::Bottom, feature.min)];
        let extreme = ends.iter().all(|&(end, value)| site.extremes(end, j).first().is_none_or(|o| o.value == value));
        require(extreme, || bad("its occurrences do not begin with its extremes"))?;
    }
    require(open || site.moments().zip(site.features()).all(within), || {
        format!("{name}: a mean is outside its range")
    })?;
    require(site.open_sums().all(|(sum, squares)| sum.is_finite() && squares.is_finite()), || {
        format!("{name}: the sums of the document in progress are not finite")
    })?;
    let reach = site.reach.as_deref().unwrap_or(&[]);
    require(reach.iter().all(|&(low, high)| low <= high), || format!("{name}: a reach is not an interval"))
}

fn consistent(feature: &Feature, n_tokens: u64, n_units: u64) -> bool {
    let Feature { min, max, positive, negative, units_positive, units_negative, .. } = *feature;
    if n_tokens == 0 {
        return (min, max) == (f32::INFINITY, f32::NEG_INFINITY)
            && [positive, negative, units_positive, units_negative] == [0; 4];
    }
    min.is_finite()
        && max.is_finite()
        && min <= max
        && positive.checked_add(negative).is_some_and(|signed| signed <= n_tokens)
        && (positive > 0) == (max > 0.0)
        && (negative > 0) == (min < 0.0)
        && (units_positive > 0) == (positive > 0)
        && (units_negative > 0) == (negative > 0)
        && units_positive <= n_units.min(positive)
        && units_negative <= n_units.min(negative)
        && !feature.squares.is_negative()
}

/// Whether the extremes where the gate is open lie between the extremes.
fn acts(feature: &Feature) -> bool {
    let Feature { min, max, acting_min, acting_max, .. } = *feature;
    let nowhere = (acting_min, acting_max) == (f32::INFINITY, f32::NEG_INFINITY);
    nowhere || (min <= acting_min && acting_min <= acting_max && acting_max <= max)
}

/// Whether a mean lies between the extremes, up to the rounding of the sums.
fn within(((mean, _), feature): ((f64, f64), &Feature)) -> bool {
    let (min, max) = (f64::from(feature.min), f64::from(feature.max));
    let slack = 1e-6 * min.abs().max(max.abs()) + 1e-20;
    mean.is_nan() || (min - slack..=max + slack).contains(&mean)
}

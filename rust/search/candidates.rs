//! What a parent's gradient proposes: at each free position, the tokens that promise the most.

use std::collections::HashMap;
use std::sync::Arc;

use super::ledger::Ledger;
use super::run::Aggregate;
use super::score::{self, GradientItem};
use crate::engine::request::{Context, Table, TokenScore, WeightKind};
use crate::error::Result;

/// Per free position, token ids, the most promising first.
pub type Ranks = Arc<Vec<Vec<u32>>>;

/// A prompt, and the penalty on its cross-entropy.
pub type Member = (usize, f64);

/// Proposals of the members in hand; those of members that stay are kept.
pub struct Proposals {
    topk: usize,
    gain: Vec<f32>,
    bias: Vec<f32>,
    known: HashMap<(usize, u64), Ranks>,
}

impl Proposals {
    /// None yet; at most `topk` tokens a position.
    pub fn new(ledger: &Ledger<'_>, topk: usize) -> Result<Self> {
        let gain = ledger.engine.weight_row(WeightKind::FinalNormGain, 0, 0)?;
        let bias = ledger.engine.weight_row(WeightKind::FinalNormBias, 0, 0)?;
        Ok(Self { topk, gain, bias, known: HashMap::new() })
    }

    /// The proposals of each member, by the gradient of its value less `penalty` times its cross-entropy. The
    /// cross-entropy counts a token both as an input and as what is predicted (Thompson et al. 2024).
    pub fn of(&mut self, ledger: &mut Ledger<'_>, members: &[Member], context: &mut Context<'_>) -> Result<Vec<Ranks>> {
        let key = |&(at, penalty): &Member| (at, penalty.to_bits());
        let mut new: Vec<Member> = Vec::new();
        for member in members {
            if !self.known.contains_key(&key(member)) && !new.iter().any(|other| key(other) == key(member)) {
                new.push(*member);
            }
        }
        for (member, ranks) in new.iter().zip(self.differentiate(ledger, &new, context)?) {
            self.known.insert(key(member), ranks);
        }
        self.known.retain(|known, _| members.iter().any(|member| key(member) == *known));
        Ok(members.iter().filter_map(|member| self.known.get(&key(member)).cloned()).collect())
    }

    /// Which members' proposals are in hand.
    pub fn in_hand(&self) -> Vec<(usize, u64)> {
        let mut known: Vec<(usize, u64)> = self.known.keys().copied().collect();
        known.sort_unstable();
        known
    }

    fn differentiate(
        &self,
        ledger: &mut Ledger<'_>,
        members: &[Member],
        context: &mut Context<'_>,
    ) -> Result<Vec<Ranks>> {
        if members.is_empty() {
            return Ok(Vec::new());
        }
        let (prompts, count) = (ledger.prompts, ledger.prompts.len());
        let (n, d_model) = (prompts.free(0).len(), ledger.engine.spec().d_model);
        let mut items: Vec<GradientItem> = Vec::new();
        let mut member_of: Vec<usize> = Vec::new();
        for (m, &(at, penalty)) in members.iter().enumerate() {
            let record = &ledger.records[at];
            for c in 0..count {
                let weight = match ledger.aggregate {
                    Aggregate::Mean => 1.0 / count as f64,
                    Aggregate::Worst => f64::from(u8::from(Aggregate::worst(&record.values) == Some(c))),
                };
                let predicted = prompts.predicted(c).len();
                let entropy_weight = if predicted == 0 { 0.0 } else { penalty / (count * predicted) as f64 };
                if weight != 0.0 || entropy_weight != 0.0 {
                    items.push(GradientItem {
                        root: prompts.root(c),
                        objective: prompts.objective(c),
                        tokens: prompts.whole(c, &record.ids),
                        free: prompts.free(c),
                        weight,
                        entropy_weight,
                    });
                    member_of.push(m);
                }
            }
        }
        let (gradients, computed) = score::token_gradients(prompts.ground(ledger.engine), &items, context)?;
        ledger.work.gradients += items.len() as u64;
        ledger.work.gradient_tokens += computed as u64;

        let mut embed = vec![0.0_f64; members.len() * n * d_model];
        let mut label = vec![0.0_f64; members.len() * n * d_model];
        for ((m, item), gradient) in member_of.into_iter().zip(&items).zip(gradients) {
            let base = m * n * d_model;
            for (sum, &value) in embed[base..].iter_mut().zip(&gradient.embed) {
                *sum += f64::from(value);
            }
            // Nothing predicts a first token, so its row stays zero.
            let first = usize::from(item.free.start == 0) * d_model;
            for (i, &value) in gradient.normalized.iter().enumerate().skip(first) {
                let (gain, bias) = (self.gain[i % d_model], self.bias[i % d_model]);
                label[base + i] += item.entropy_weight * (f64::from(value) * f64::from(gain) + f64::from(bias));
            }
        }
        let embed: Vec<f32> = embed.into_iter().map(|value| value as f32).collect();
        let label: Vec<f32> = label.into_iter().map(|value| value as f32).collect();
        let ones = vec![1.0; members.len() * n];
        let mut terms = vec![TokenScore { table: Table::Embed, x: &embed, scale: &ones }];
        if members.iter().any(|&(_, penalty)| penalty != 0.0) {
            terms.push(TokenScore { table: Table::Unembed, x: &label, scale: &ones });
        }
        let top = ledger.engine.top_tokens(&terms, members.len() * n, ledger.allowed, self.topk)?;
        Ok(top.ids.chunks(n).map(|rows| Arc::new(rows.to_vec())).collect())
    }
}

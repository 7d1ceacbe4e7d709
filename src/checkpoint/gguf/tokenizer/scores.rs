//! Merges by rank and by score.
//!
//! A `tokenizer.json` lists pairs of tokens, and the first pair of the list that occurs in a text is merged first.
//! SentencePiece merges any two neighbours that make a token, the token with the highest score first. A list that
//! comes from a SentencePiece model has every pair that makes a token, in the order of the scores. Such a list and the
//! scores say the same, and each follows from the other.
//!
//! Three details differ. Where two overlapping pairs make the same token, SentencePiece takes the left one and a list
//! the earlier pair. Where two tokens have the same score, SentencePiece takes the left one and a list the token with
//! the lower id. And SentencePiece merges characters that are no tokens themselves, which a list cannot.

use std::collections::{HashMap, HashSet};

/// A pair of neighbours to merge.
pub(super) type Pair<'a> = (&'a str, &'a str);

/// The scores of the tokens that `merges` make, by text: 0 for the first, −1 for the next, and so on.
///
/// `is_token` says whether a text is an ordinary token. `tokens` are all of them.
///
/// Errors, as what was found: a list that does not follow from scores.
pub(super) fn from_merges<'a>(
    merges: &[Pair<'a>],
    tokens: impl Iterator<Item = &'a str>,
    is_token: impl Fn(&str) -> bool,
) -> Result<HashMap<String, f32>, String> {
    let pairs: HashSet<Pair<'_>> = merges.iter().copied().collect();
    // First and last place of a token in the list.
    let mut places: HashMap<String, (usize, usize)> = HashMap::new();
    for (place, (left, right)) in merges.iter().enumerate() {
        places.entry(format!("{left}{right}")).or_insert((place, place)).1 = place;
    }
    for token in tokens {
        for (left, right) in splits(token) {
            let symbol = |text: &str| is_token(text) || text.chars().nth(1).is_none();
            if symbol(left) && symbol(right) && !pairs.contains(&(left, right)) {
                return Err(format!("no merge of {left:?} and {right:?}, although {token:?} is a token"));
            }
        }
    }
    let mut order: Vec<(String, (usize, usize))> = places.into_iter().collect();
    order.sort_unstable_by_key(|(_, (first, _))| *first);
    let (mut scores, mut level, mut end) = (HashMap::new(), 0.0, 0);
    for (index, (token, (first, last))) in order.iter().enumerate() {
        let interleaved = index > 0 && *first < end;
        // Runs of one character end up whole in any order.
        if interleaved && !(is_run(token) && is_run(&order[index - 1].0)) {
            return Err(format!("merges of {token:?} between those of other tokens"));
        }
        if index > 0 && !interleaved {
            level -= 1.0;
        }
        end = end.max(*last);
        scores.insert(token.clone(), level);
    }
    Ok(scores)
}

/// The merges that follow from scores, in order. `tokens` are the ordinary tokens, each with its score.
///
/// Errors, as what was found: scores that do not order the tokens.
pub(super) fn to_merges<'a>(tokens: &[(&'a str, f32)]) -> Result<Vec<Pair<'a>>, String> {
    let known: HashSet<&str> = tokens.iter().map(|(text, _)| *text).collect();
    let mut merges: Vec<(f32, usize, Pair<'a>)> = Vec::new();
    for (place, &(token, score)) in tokens.iter().enumerate() {
        if !score.is_finite() {
            return Err(format!("a score {score} of token {token:?}"));
        }
        let pairs = splits(token).filter(|(left, right)| known.contains(left) && known.contains(right));
        merges.extend(pairs.map(|pair| (score, place, pair)));
    }
    merges.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
    match (merges.first(), merges.last()) {
        (Some((highest, first, _)), Some((lowest, last, _))) if highest == lowest && first != last => {
            Err(format!("the same score {highest} of all tokens"))
        }
        _ => Ok(merges.into_iter().map(|(_, _, pair)| pair).collect()),
    }
}

/// All ways to cut a text into two parts.
fn splits(text: &str) -> impl Iterator<Item = Pair<'_>> {
    text.char_indices().skip(1).map(|(at, _)| text.split_at(at))
}

/// Whether a text consists of one character, repeated.
fn is_run(text: &str) -> bool {
    let mut chars = text.chars();
    chars.next().is_some_and(|first| chars.all(|char| char == first))
}

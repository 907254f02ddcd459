//! The whole way from texts to the rows that stay.

use std::collections::{BTreeSet, HashSet};

use arrow_array::{ArrayRef, StringArray};
use proptest::prelude::*;
use std::sync::Arc;

use super::*;

const SETTINGS: Settings = Settings {
    threshold: Some(0.8),
    shingle: 2,
    keep: Keep::First,
    seed: 1,
    memory: 1 << 20,
};

fn column(texts: &[Option<&str>]) -> TextColumn {
    let array: ArrayRef = Arc::new(StringArray::from(texts.to_vec()));
    TextColumn::new("texts", &array.data_type().clone(), &[array]).unwrap()
}

/// Runs over the texts in batches of a few rows.
fn run(settings: &Settings, texts: &[String], keys: Option<&[f64]>) -> Outcome {
    let mut dedup = Dedup::new(settings.clone()).unwrap();
    let stop = Stop::new();
    for from in (0..texts.len()).step_by(7) {
        let to = texts.len().min(from + 7);
        let rows: Vec<u32> = (from as u32..to as u32).collect();
        let part: Vec<Option<&str>> = texts[from..to].iter().map(|t| Some(&**t)).collect();
        let batch = Batch {
            rows: &rows,
            texts: &column(&part),
            keys: keys.map(|keys| &keys[from..to]),
            rest: &[],
        };
        dedup.add(&batch, &stop).unwrap();
    }
    dedup.finish(texts.len() as u32, &stop).unwrap()
}

fn set(text: &str, size: usize) -> HashSet<Vec<String>> {
    let words: Vec<String> = crate::words::split(text)
        .unwrap()
        .words
        .iter()
        .map(|w| w.of(text).to_lowercase())
        .collect();
    if words.len() < size {
        return [words].into();
    }
    words.windows(size).map(<[String]>::to_vec).collect()
}

fn exact_jaccard(a: &str, b: &str, size: usize) -> f64 {
    let (x, y) = (set(a, size), set(b, size));
    x.intersection(&y).count() as f64 / x.union(&y).count() as f64
}

fn staying(outcome: &Outcome, texts: &[String]) -> BTreeSet<String> {
    (0..outcome.rows)
        .filter(|&row| outcome.gone(row).is_none())
        .map(|row| texts[row as usize].clone())
        .collect()
}

/// What the rule says, worked out without hashes: the texts that stay.
fn plain(texts: &[String], order: &[usize], threshold: f64, size: usize) -> BTreeSet<String> {
    let mut kept: Vec<&str> = Vec::new();
    for &i in order {
        if texts[i].trim().is_empty() {
            kept.push(&texts[i]);
            continue;
        }
        if kept
            .iter()
            .all(|k| exact_jaccard(k, &texts[i], size) < threshold)
        {
            kept.push(&texts[i]);
        }
    }
    kept.into_iter().map(str::to_owned).collect()
}

/// Texts of few words, so that many are near each other.
fn some_texts() -> impl Strategy<Value = Vec<String>> {
    let word = prop::sample::select(vec!["a", "b", "C", "d", "e", "é", "漢", "!", "x y", "\n"]);
    let edit = (0_usize..12, word.clone());
    let base = prop::collection::vec(word, 0..14);
    (
        prop::collection::vec(base, 1..4),
        prop::collection::vec(
            (any::<prop::sample::Index>(), prop::option::of(edit)),
            1..25,
        ),
    )
        .prop_map(|(bases, rows)| {
            rows.into_iter()
                .map(|(base, edit)| {
                    let mut words = base.get(&bases).clone();
                    if let Some((at, word)) = edit {
                        words.insert(at.min(words.len()), word);
                    }
                    words.join(" ")
                })
                .collect()
        })
}

proptest! {
    #[test]
    fn every_row_that_goes_is_near_one_that_stays(
        texts in some_texts(), threshold in prop::sample::select(vec![0.3, 0.8, 1.0]),
    ) {
        let settings = Settings { threshold: Some(threshold), ..SETTINGS };
        let outcome = run(&settings, &texts, None);
        for row in 0..outcome.rows {
            let Some((kept, near, reason)) = outcome.gone(row) else { continue };
            let (a, b) = (&texts[row as usize], &texts[kept as usize]);
            prop_assert!(kept < row && outcome.gone(kept).is_none());
            prop_assert_eq!(near, exact_jaccard(a, b, 2));
            prop_assert!(near >= threshold);
            let same = |t: &str| t.to_lowercase().split_whitespace().collect::<Vec<_>>().join(" ");
            prop_assert_eq!(reason == Reason::Exact, same(a) == same(b));
        }
        let gone = outcome.exact + outcome.near;
        prop_assert_eq!(gone + outcome.rows_out, outcome.rows);
        // Equal sets always meet, so with a threshold of 1 nothing hangs on chance.
        if threshold == 1.0 {
            let order: Vec<usize> = (0..texts.len()).collect();
            prop_assert_eq!(staying(&outcome, &texts), plain(&texts, &order, threshold, 2));
        }
    }

    #[test]
    fn the_same_texts_stay_whatever_the_order(
        (texts, shuffled) in some_texts().prop_flat_map(|t| (Just(t.clone()), Just(t).prop_shuffle())),
        memory in prop::sample::select(vec![0_usize, 300, 1 << 20]),
    ) {
        let shortest = Settings { keep: Keep::Shortest, ..SETTINGS };
        let all = staying(&run(&shortest, &texts, None), &texts);
        let small = Settings { memory, ..shortest.clone() };
        prop_assert_eq!(&staying(&run(&small, &shuffled, None), &shuffled), &all);
        let lowest = Settings { keep: Keep::Lowest, memory, ..SETTINGS };
        let keys: Vec<f64> = shuffled.iter().map(|t| t.chars().count() as f64).collect();
        prop_assert_eq!(&staying(&run(&lowest, &shuffled, Some(&keys)), &shuffled), &all);
    }

    #[test]
    fn memory_makes_no_difference(texts in some_texts(), memory in 0_usize..2000) {
        let small = Settings { memory, ..SETTINGS };
        let (a, b) = (run(&SETTINGS, &texts, None), run(&small, &texts, None));
        for row in 0..a.rows {
            prop_assert_eq!(a.gone(row), b.gone(row));
        }
    }
}

/// Words that are different from each other.
fn words(state: &mut u64, count: usize) -> Vec<String> {
    (0..count)
        .map(|_| format!("{:x}", splitmix(state)))
        .collect()
}

#[test]
fn a_chain_does_not_join_its_ends() {
    let mut state = 3;
    let base = words(&mut state, 40);
    let other = words(&mut state, 6);
    let text = |changed: usize| [&other[..changed], &base[changed..]].concat().join(" ");
    let texts = [text(0), text(3), text(6)];
    let near = |a: usize, b: usize| exact_jaccard(&texts[a], &texts[b], 2);
    assert!(near(0, 1) >= 0.8 && near(1, 2) >= 0.8 && near(0, 2) < 0.8);
    let outcome = run(&SETTINGS, &texts, None);
    assert_eq!(outcome.gone(1).map(|g| g.0), Some(0));
    assert_eq!(outcome.gone(2), None);
    // With the middle one first, both others go.
    let turned = [texts[1].clone(), texts[0].clone(), texts[2].clone()];
    let outcome = run(&SETTINGS, &turned, None);
    assert_eq!((outcome.rows_out, outcome.near, outcome.groups), (1, 2, 1));
}

#[test]
fn ties_are_broken_by_text() {
    let texts = ["b a c", "B a c", "a b", "b a", "a  b"].map(str::to_owned);
    let shortest = Settings {
        keep: Keep::Shortest,
        ..SETTINGS
    };
    let outcome = run(&shortest, &texts, None);
    assert_eq!(
        outcome.gone(0).map(|g| (g.0, g.2)),
        Some((1, Reason::Exact))
    );
    assert_eq!(outcome.gone(4).map(|g| g.0), Some(2));
    assert_eq!((outcome.rows_out, outcome.exact), (3, 2));
}

#[test]
fn rows_without_text_stay() {
    let mut dedup = Dedup::new(SETTINGS).unwrap();
    let batch = Batch {
        rows: &[1, 2, 5, 6],
        texts: &column(&[Some(""), None, Some("  "), Some("x")]),
        keys: None,
        rest: &[],
    };
    dedup.add(&batch, &Stop::new()).unwrap();
    let again = dedup.add(&batch, &Stop::new());
    assert!(again.unwrap_err().to_string().contains("order"));
    let outcome = dedup.finish(8, &Stop::new()).unwrap();
    let counts = (outcome.rows_out, outcome.exact, outcome.without_text);
    assert_eq!(counts, (8, 0, 7));
}

#[test]
fn impossible_settings() {
    for (threshold, shingle) in [(0.05, 5), (1.5, 5), (f64::NAN, 5), (0.8, 0)] {
        let settings = Settings {
            threshold: Some(threshold),
            shingle,
            ..SETTINGS
        };
        assert!(Dedup::new(settings).is_err(), "{threshold} {shingle}");
    }
}

#[test]
fn a_stop_ends_it() {
    let stop = Stop::new();
    stop.set();
    let mut dedup = Dedup::new(SETTINGS).unwrap();
    let batch = Batch {
        rows: &[0],
        texts: &column(&[Some("a")]),
        keys: None,
        rest: &[],
    };
    assert!(matches!(dedup.add(&batch, &stop), Err(Error::Stopped)));
}

/// Texts of `shared` words in common and `own` of their own.
fn template(count: usize, shared: usize, own: usize) -> Vec<String> {
    let mut state = 5;
    let common = words(&mut state, shared).join(" ");
    (0..count)
        .map(|_| format!("{common} {}", words(&mut state, own).join(" ")))
        .collect()
}

#[test]
fn one_template_takes_time_in_proportion() {
    // Just over the threshold all but one go, each after one comparison.
    let texts = template(3000, 100, 10);
    assert!(exact_jaccard(&texts[0], &texts[1], 2) > 0.8);
    let outcome = run(&SETTINGS, &texts, None);
    assert_eq!((outcome.rows_out, outcome.near), (1, 2999));
    assert_eq!(outcome.counts.comparisons, 2999);
    // Just under it all stay, and comparisons are bounded, however many texts there are.
    let texts = template(3000, 100, 13);
    let near = exact_jaccard(&texts[0], &texts[1], 2);
    assert!(near < 0.8 && near > 0.75, "{near}");
    for most in [10, 20] {
        let stop = Stop::new();
        let mut dedup = Dedup::new(SETTINGS).unwrap();
        let rows: Vec<u32> = (0..3000).collect();
        let all: Vec<Option<&str>> = texts.iter().map(|t| Some(&**t)).collect();
        let batch = Batch {
            rows: &rows,
            texts: &column(&all),
            keys: None,
            rest: &[],
        };
        dedup.add(&batch, &stop).unwrap();
        let outcome = dedup.finish_within(3000, most, &stop).unwrap();
        assert_eq!(outcome.rows_out, 3000);
        assert!(outcome.counts.comparisons <= 3000 * most as u64);
        assert!(outcome.counts.undecided > 2500);
    }
}

#[test]
fn true_copies_are_found_in_a_crowd_that_is_nearly_near() {
    let mut texts = template(2000, 100, 13);
    let copies: Vec<String> = texts.iter().take(500).map(|t| format!("{t} end")).collect();
    texts.extend(copies);
    let all: Vec<Option<&str>> = texts.iter().map(|t| Some(&**t)).collect();
    let rows: Vec<u32> = (0..texts.len() as u32).collect();
    let mut dedup = Dedup::new(SETTINGS).unwrap();
    let batch = Batch {
        rows: &rows,
        texts: &column(&all),
        keys: None,
        rest: &[],
    };
    dedup.add(&batch, &Stop::new()).unwrap();
    let outcome = dedup
        .finish_within(texts.len() as u32, 20, &Stop::new())
        .unwrap();
    let found = (0..500).filter(|i| outcome.gone(2000 + i).is_some_and(|g| g.0 == *i));
    assert!(found.count() >= 495);
}

#[test]
fn pairs_at_the_threshold_are_found() {
    // Two texts each: 180 shingles in common, and as many of their own as the similarity leaves.
    let mut state = 11;
    let mut texts = Vec::new();
    for _ in 0..5000 {
        let common = words(&mut state, 181);
        for _ in 0..2 {
            texts.push([common.clone(), words(&mut state, 22)].concat().join(" "));
        }
    }
    let near = exact_jaccard(&texts[0], &texts[1], 2);
    assert!((0.8..0.805).contains(&near), "{near}");
    let outcome = run(&SETTINGS, &texts, None);
    assert!(outcome.near >= 4950, "{}", outcome.near);
}

#[test]
fn the_plain_rule_gives_the_same_on_many_texts() {
    let mut state = 17;
    let mut texts = Vec::new();
    for _ in 0..60 {
        let base = words(&mut state, 60);
        for _ in 0..8 {
            let mut copy = base.clone();
            for _ in 0..splitmix(&mut state) % 5 {
                let at = (splitmix(&mut state) % 60) as usize;
                copy[at] = words(&mut state, 1).remove(0);
            }
            texts.push(copy.join(" "));
        }
    }
    let mut order: Vec<usize> = (0..texts.len()).collect();
    let expected = plain(&texts, &order, 0.8, 2);
    assert_eq!(staying(&run(&SETTINGS, &texts, None), &texts), expected);
    assert!(expected.len() > 60 && expected.len() < 400);
    order.sort_by_key(|&i| (texts[i].chars().count(), texts[i].clone()));
    let shortest = Settings {
        keep: Keep::Shortest,
        ..SETTINGS
    };
    let expected = plain(&texts, &order, 0.8, 2);
    assert_eq!(staying(&run(&shortest, &texts, None), &texts), expected);
}

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use arrow_array::{ArrayRef, StringArray};
use proptest::prelude::*;

use super::*;

fn column(texts: &[String]) -> TextColumn {
    let array: ArrayRef = Arc::new(StringArray::from_iter_values(texts));
    TextColumn::new("texts", array.data_type(), std::slice::from_ref(&array)).unwrap()
}

fn lowered(text: &str) -> Vec<String> {
    let words = split(text).unwrap().words;
    words.iter().map(|w| w.of(text).to_lowercase()).collect()
}

type Gram = Vec<String>;

fn grams(words: &[String], n: usize) -> HashSet<Gram> {
    words.windows(n).map(<[String]>::to_vec).collect()
}

/// The plain twin: sets of n-grams, row by row and item by item. (row, item's words) -> (shared, total).
fn plain(
    items: &[String],
    rows: &[String],
    n: usize,
    share: f64,
    most: (usize, usize),
) -> BTreeMap<(usize, Gram), (u32, u32)> {
    let items: HashSet<Gram> = items
        .iter()
        .map(|i| lowered(i))
        .filter(|w| !w.is_empty())
        .collect();
    let rows: Vec<Gram> = rows.iter().map(|r| lowered(r)).collect();
    let aside = |gram: &Gram| {
        items.iter().filter(|i| grams(i, n).contains(gram)).count() > most.0
            || rows.iter().filter(|r| grams(r, n).contains(gram)).count() > most.1
    };
    let mut found = BTreeMap::new();
    for (number, row) in rows.iter().enumerate() {
        for item in &items {
            if item.len() < n {
                if item == row && item.len() >= n.div_ceil(2) {
                    found.insert((number, item.clone()), (1, 1));
                }
                continue;
            }
            let live: HashSet<Gram> = grams(item, n).into_iter().filter(|g| !aside(g)).collect();
            let shared = grams(row, n).intersection(&live).count();
            if shared > 0 && shared as f64 >= share * live.len() as f64 {
                found.insert((number, item.clone()), (shared as u32, live.len() as u32));
            }
        }
    }
    found
}

fn texts(most: usize) -> impl Strategy<Value = Vec<String>> {
    let word = prop::sample::select(vec![
        "The", "the", "CAT", "cat", "sat", "É", "é", ".", "漢字",
    ]);
    let text = prop::collection::vec(word, 0..12).prop_map(|words| words.join(" "));
    prop::collection::vec(text, 0..most)
}

proptest! {
    #[test]
    fn as_the_plain_twin(
        items in texts(8),
        rows in texts(8),
        n in 1_usize..5,
        share in 0.0..1.0,
        most in (1_usize..5, 1_usize..5),
    ) {
        let stop = Stop::new();
        let (index, of_text) = Index::new(&column(&items), n, &stop).unwrap();
        let mut words_of_item = BTreeMap::new();
        for (item, number) in items.iter().zip(&of_text) {
            prop_assert_eq!(number.is_none(), lowered(item).is_empty());
            if let Some(number) = number {
                let known = words_of_item.entry(*number).or_insert_with(|| lowered(item));
                prop_assert_eq!(&*known, &lowered(item));
            }
        }
        let rows_column = column(&rows);
        let any = index.count(std::slice::from_ref(&rows_column), &stop).unwrap();
        let aside = index.set_aside(most.0 as u32, most.1 as u32);
        let matches = index.matches(&rows_column, &aside, share, &stop).unwrap();
        let mut found = BTreeMap::new();
        for m in &matches {
            prop_assert!(any[m.row as usize]);
            let key = (m.row as usize, words_of_item[&m.item].clone());
            prop_assert!(found.insert(key, (m.shared, m.total)).is_none());
            let text: String = rows[m.row as usize]
                .chars()
                .skip(m.start as usize)
                .take((m.end - m.start) as usize)
                .collect();
            let stretch = lowered(&text);
            let item = &words_of_item[&m.item];
            if item.len() >= n {
                prop_assert!(grams(&stretch, n).is_subset(&grams(item, n)));
                prop_assert!(stretch.len() >= n);
            } else {
                prop_assert_eq!(&stretch, item);
            }
        }
        prop_assert_eq!(found, plain(&items, &rows, n, share, most));
        prop_assert!(matches.is_sorted_by_key(|m| m.row));
    }
}

#[test]
fn a_row_counts_once_whatever_its_columns() {
    let items = ["a b c".to_owned()];
    let (index, _) = Index::new(&column(&items), 3, &Stop::new()).unwrap();
    let texts = ["A b c. a b c".to_owned(), "x".to_owned()];
    let sides = [column(&texts), column(&texts)];
    assert_eq!(index.count(&sides, &Stop::new()).unwrap(), [true, false]);
    let aside = index.set_aside(10, 0);
    assert_eq!(aside.count(), 1);
    let phrases = index.phrases(&aside, 5);
    assert_eq!(
        phrases,
        [Phrase {
            words: "a b c".to_owned(),
            items: 1,
            rows: 1
        }]
    );
    assert_eq!(index.set_aside(10, 1).count(), 0);
}

#[test]
fn a_stop_ends_it() {
    let stop = Stop::new();
    stop.set();
    let texts = column(&["a b c d".to_owned()]);
    assert!(Index::new(&texts, 2, &stop).is_err());
    let (index, _) = Index::new(&texts, 2, &Stop::new()).unwrap();
    assert!(index.count(std::slice::from_ref(&texts), &stop).is_err());
    let aside = index.set_aside(1, 1);
    assert!(index.matches(&texts, &aside, 0.5, &stop).is_err());
}

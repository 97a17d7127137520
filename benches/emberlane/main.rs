//! `cargo bench --bench emberlane -- [--json] [--only SUBSTR] [--quick]`: one row a figure, each with its answer
//! asserted and its rival measured in the same run. Absolute times vary with the machine; the ratios should not.
#![expect(clippy::print_stdout, reason = "a bench prints its rows")]
#![expect(clippy::unwrap_used, reason = "a bench that cannot run should stop")]
#![expect(clippy::disallowed_methods, reason = "a bench reads the clock")]

mod measure;
mod prefix_hash;
mod prefix_index;
mod rival;
mod row;

use row::{Options, Row};

/// Measures a group of rows.
type Measure = fn(&Options) -> Vec<Row>;

/// Every group of rows: a name for `--only`, and what measures it.
const GROUPS: [(&str, Measure); 2] = [("hash", prefix_hash::rows), ("index", prefix_index::rows)];

fn main() {
    let options = Options::from_arguments(std::env::args().skip(1));
    let mut rows = Vec::new();
    for (group, measure) in GROUPS {
        if options.wants(group) {
            let measured = measure(&options);
            if options.json {
                measured.iter().for_each(|row| println!("{}", row.json()));
            }
            rows.extend(measured);
        }
    }
    if !options.json {
        print!("{}", row::table(&rows));
    }
}

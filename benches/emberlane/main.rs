//! `cargo bench --bench emberlane -- [--json] [--only SUBSTR] [--quick]`: one row a figure, each with its answer
//! asserted and its rival measured in the same run. Absolute times vary with the machine; the ratios should not.
#![expect(clippy::print_stdout, reason = "a bench prints its rows")]
#![expect(clippy::unwrap_used, reason = "a bench that cannot run should stop")]
#![expect(clippy::disallowed_methods, reason = "a bench reads the clock")]

mod alloc;
mod bodies;
mod decision;
mod learn;
mod load;
mod measure;
mod naive;
mod parse;
mod plane;
mod prefix_hash;
mod prefix_index;
mod receive;
mod rival;
mod row;
mod sim;
mod world;

use row::{Goal, Options, Row};

/// The allocator of the binary itself; it counts, for the rows of `alloc`.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Measures a group of rows.
type Measure = fn(&Options) -> Vec<Row>;

/// Every group of rows: a name for `--only`, and what measures it.
const GROUPS: [(&str, Measure); 10] = [
    ("hash", prefix_hash::rows),
    ("index", prefix_index::rows),
    ("parse", parse::rows),
    ("decision", decision::rows),
    ("learn", learn::rows),
    ("receive", receive::rows),
    ("load", load::rows),
    ("plane", plane::rows),
    ("sim", sim::rows),
    ("allocations", allocations),
];

/// The row of what decisions allocate. An exact number, so anything but the goal stops the bench.
fn allocations(_: &Options) -> Vec<Row> {
    let bytes = alloc::bytes_in_steady_state();
    assert_eq!(bytes, 0, "decisions allocate in steady state");
    vec![Row::new("decision/allocated", bytes as f64, "bytes").goal(Goal::AtMost(0.0))]
}

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

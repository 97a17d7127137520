//! What people see of the simulator's results: statistics over seeds, tables, plots and pages. Everything here is a
//! function from results to text.

pub mod grid;
pub mod html;
pub mod measure;
pub mod plot;
pub mod statistics;
pub mod table;

#[cfg(test)]
pub(crate) mod fake;

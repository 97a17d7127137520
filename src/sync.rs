//! What several cores share without locks.

pub mod huge;

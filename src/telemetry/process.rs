//! What the kernel says of this process, from `/proc/self`; zero where there is no such file.

/// Resident memory, bytes.
#[must_use]
pub fn resident_bytes() -> u64 {
    let pages = std::fs::read_to_string("/proc/self/statm").ok();
    let pages = pages.and_then(|text| text.split_ascii_whitespace().nth(1)?.parse::<u64>().ok());
    pages.unwrap_or(0) * page_bytes()
}

fn page_bytes() -> u64 {
    nix::unistd::sysconf(nix::unistd::SysconfVar::PAGE_SIZE)
        .ok()
        .flatten()
        .and_then(|n| n.try_into().ok())
        .unwrap_or(4096)
}

/// CPU time since the start, user and system, seconds.
#[must_use]
pub fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second field is the program's name in parentheses and may hold anything: count from its end.
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks: f64 = after_name.split_ascii_whitespace().skip(11).take(2).filter_map(|n| n.parse::<f64>().ok()).sum();
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100);
    #[expect(clippy::cast_precision_loss, reason = "ticks per second: a small number")]
    let per_second = per_second as f64;
    ticks / per_second
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_kernel_answers() {
        assert!(super::resident_bytes() > 1 << 20);
        assert!(super::cpu_seconds() >= 0.0);
    }
}

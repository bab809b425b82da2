//! Where and when figures were taken.

/// The day, in UTC.
pub fn date() -> String {
    let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    now.date().to_string()
}

/// Processor and cores.
pub fn name() -> String {
    let cpu = read("/proc/cpuinfo");
    let guest = has(&cpu, "hypervisor");
    format!(
        "{}{}, {} cores",
        field(&cpu, "model name"),
        if guest { " in a virtual machine" } else { "" },
        std::thread::available_parallelism().map_or(0, usize::from),
    )
}

/// What else makes a difference: what the processor can, memory, kernel.
pub fn details() -> String {
    let cpu = read("/proc/cpuinfo");
    let can = ["aes", "vaes", "avx2", "avx512f", "sha_ni"];
    let can: Vec<&str> = can.into_iter().filter(|flag| has(&cpu, flag)).collect();
    let memory = field(&read("/proc/meminfo"), "MemTotal");
    let memory: u64 = memory.trim_end_matches(" kB").parse().unwrap_or(0);
    format!(
        "family {}, model {}, {}; {} GiB; Linux {}",
        field(&cpu, "cpu family"),
        // Not "model name".
        field(&cpu, "model\t"),
        can.join(", "),
        memory >> 20,
        read("/proc/sys/kernel/osrelease").trim()
    )
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn field(text: &str, name: &str) -> String {
    let line = text.lines().find(|line| line.starts_with(name));
    let value = line.and_then(|line| line.split_once(':'));
    value.map_or_else(
        || "unknown".to_owned(),
        |(_, value)| value.trim().to_owned(),
    )
}

/// Whether the processor has this flag.
fn has(cpu: &str, flag: &str) -> bool {
    field(cpu, "flags").split(' ').any(|f| f == flag)
}

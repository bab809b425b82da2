//! Where and when figures were taken.

/// The day, in UTC.
pub fn date() -> String {
    let now = jiff::Timestamp::now().to_zoned(jiff::tz::TimeZone::UTC);
    now.date().to_string()
}

/// Processor, cores, memory and kernel.
pub fn name() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, name: &str| {
        let line = text.lines().find(|line| line.starts_with(name));
        let value = line.and_then(|line| line.split_once(':'));
        value.map_or_else(
            || "unknown".to_owned(),
            |(_, value)| value.trim().to_owned(),
        )
    };
    let cpu = read("/proc/cpuinfo");
    let flags = field(&cpu, "flags");
    let known: Vec<&str> = ["aes", "vaes", "avx2", "avx512f", "sha_ni"]
        .into_iter()
        .filter(|flag| flags.split(' ').any(|f| f == *flag))
        .collect();
    let memory = field(&read("/proc/meminfo"), "MemTotal");
    let memory: u64 = memory.trim_end_matches(" kB").parse().unwrap_or(0);
    let virtual_machine = flags.split(' ').any(|f| f == "hypervisor");
    format!(
        "{} ({}; family {}, model {}){}, {} cores, {} GiB, Linux {}",
        field(&cpu, "model name"),
        known.join(", "),
        field(&cpu, "cpu family"),
        // "model name" begins with "model", too, but comes later.
        field(&cpu, "model\t"),
        if virtual_machine {
            " in a virtual machine"
        } else {
            ""
        },
        std::thread::available_parallelism().map_or(0, usize::from),
        memory >> 20,
        read("/proc/sys/kernel/osrelease").trim()
    )
}

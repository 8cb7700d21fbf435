//! Measures the works, and prints a line for each.

use std::fmt::Write as _;

use crate::works::{BOUND, Contender, FLOOR, LIBVIRT, OURS, Work};

/// What a row must reach.
#[derive(Clone, Copy)]
pub(crate) enum Target {
    /// At most this much of libvirt's time.
    Libvirt(f64),
    /// At most this much of the floor's.
    Floor(f64),
    /// At most this, in the row's unit.
    AtMost(f64),
    /// At least this.
    AtLeast(f64),
}

pub(crate) struct Row {
    pub(crate) work: String,
    pub(crate) file_system: String,
    pub(crate) unit: &'static str,
    pub(crate) results: Vec<(String, f64)>,
    /// Who could not take part, and why.
    pub(crate) skipped: Vec<(&'static str, &'static str)>,
    pub(crate) targets: Vec<Target>,
}

impl Row {
    pub(crate) fn of(&self, name: &str) -> Option<f64> {
        self.results.iter().find(|(other, _)| other == name).map(|&(_, value)| value)
    }

    fn ratio_to(&self, name: &str) -> Option<f64> {
        Some(self.of(OURS)? / self.of(name)?)
    }

    /// How much of what is allowed somebody used: at most 1 is met. `None` where the rival is
    /// missing.
    fn used(&self, who: &str, target: Target) -> Option<f64> {
        let value = self.of(who)?;
        match target {
            Target::Libvirt(most) => Some(value / self.of(LIBVIRT)? / most),
            Target::Floor(most) => Some(value / self.of(FLOOR)? / most),
            Target::AtMost(most) => Some(value / most),
            Target::AtLeast(least) => Some(least / value),
        }
    }

    /// A target that is missed is answered if it is out of everybody's reach, in this very run: if the
    /// bare system calls, or these with the least around them that a lockspace does, miss it or come so
    /// near that nothing is left for what they leave out.
    fn verdict(&self) -> &'static str {
        /// Modes, ranges, counts, waiters and errors are not free.
        const NEAR: f64 = 0.97;
        if self.of(OURS).is_none() {
            return "missed";
        }
        // A rival that is missing decides nothing.
        let used = |who, target| self.used(who, target).unwrap_or(0.0);
        let mut missed = self.targets.iter().filter(|target| used(OURS, **target) > 1.0).peekable();
        if missed.peek().is_none() {
            return "met";
        }
        let out_of_reach = |target: &Target| {
            let by_floor = !matches!(target, Target::Floor(_)) && used(FLOOR, *target) > NEAR;
            by_floor || used(BOUND, *target) > NEAR
        };
        if missed.all(out_of_reach) { "answered" } else { "missed" }
    }

    pub(crate) fn print(&self) {
        let number = |value| number(self.unit, value);
        let mut line = format!("{} | {} | ", self.work, self.file_system);
        let ours = self.of(OURS);
        let _ = write!(line, "ours {} | ", ours.map_or("-".to_owned(), number));
        let rivals = self.results.iter().filter(|(name, _)| name != OURS);
        let rivals = rivals.map(|(name, value)| format!("{name} {}", number(*value)));
        let skipped = self.skipped.iter().map(|(name, why)| format!("{name} skipped: {why}"));
        let rivals: Vec<_> = rivals.chain(skipped).collect();
        line += &if rivals.is_empty() { "-".to_owned() } else { rivals.join(", ") };
        let ratio =
            |name| self.ratio_to(name).map_or("-".to_owned(), |ratio| format!("{ratio:.3}"));
        let _ = write!(line, " | libvirt x {} | floor x {} | ", ratio(LIBVIRT), ratio(FLOOR));
        let targets = self.targets.iter().map(|target| match target {
            Target::Libvirt(most) => format!("<= {most} of libvirt"),
            Target::Floor(most) => format!("<= {most} of the floor"),
            Target::AtMost(most) => format!("<= {}", number(*most)),
            Target::AtLeast(least) => format!(">= {least}"),
        });
        let targets: Vec<_> = targets.collect();
        if targets.is_empty() {
            // Not a row: nothing is asked of it.
            return println!("({line}no target)");
        }
        println!("{line}{} | {}", targets.join(", "), self.verdict());
    }
}

pub(crate) fn number(unit: &str, value: f64) -> String {
    match unit {
        "ns" if value >= 1e6 => format!("{:.2} ms", value / 1e6),
        "ns" if value >= 1e4 => format!("{:.1} us", value / 1e3),
        "ns" if value >= 1e3 => format!("{value:.0} ns"),
        "ns" => format!("{value:.1} ns"),
        "B" => format!("{value:.0} B"),
        _ => format!("{value:.2}"),
    }
}

/// The median of each contender's time for one, over rounds in which all take part, in an order
/// that changes.
pub(crate) fn measure(work: &mut Work, rounds: usize) -> Vec<(String, f64)> {
    let ops = work.ops;
    let mut times = vec![Vec::with_capacity(rounds); work.contenders.len()];
    let mut order: Vec<_> = (0..work.contenders.len()).collect();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..=rounds {
        for last in (1..order.len()).rev() {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            order.swap(last, (random % (last as u64 + 1)) as usize);
        }
        for &at in &order {
            let taken = (work.contenders[at].run)(ops).as_nanos() as f64 / ops as f64;
            // The first round only warms up.
            if round > 0 {
                times[at].push(taken);
            }
        }
    }
    let name = |contender: &Contender| contender.name.clone();
    work.contenders.iter().map(name).zip(times.into_iter().map(median)).collect()
}

pub(crate) fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

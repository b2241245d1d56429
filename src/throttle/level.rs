//! Throttle levels: how far a run is slowed.

use std::time::Duration;

use super::reason::Reason;

/// From full speed to standstill.
const STEPS: [Step; 5] = [
    Step {
        share: 1.0,
        pause_ratio: 0.0,
    },
    Step {
        share: 0.5,
        pause_ratio: 0.0,
    },
    Step {
        share: 0.0,
        pause_ratio: 0.0,
    },
    Step {
        share: 0.0,
        pause_ratio: 1.0,
    },
    // Running segments trickle rather than stop, so that they need not be read again.
    Step {
        share: 0.0,
        pause_ratio: f64::INFINITY,
    },
];

/// At this step no segment starts.
const STANDSTILL: u8 = 4;

/// Longest pause before one block. Longer ones would lose the segment's connections.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// What a step does.
struct Step {
    /// Share of all segments that may run at once, rounded to at least one segment.
    share: f64,
    /// Seconds of pause for each second of work.
    pause_ratio: f64,
}

/// A step and its reason.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Level {
    step: u8,
    reason: Option<Reason>,
}

impl Level {
    /// Full speed.
    pub(super) const NONE: Self = Self {
        step: 0,
        reason: None,
    };

    /// The reason, unless at full speed.
    pub(super) fn reason(self) -> Option<Reason> {
        self.reason.filter(|_| self.step > 0)
    }

    /// How many of `concurrency` segments may run.
    pub(super) fn segments_at_once(self, concurrency: usize) -> usize {
        if self.step >= STANDSTILL {
            return 0;
        }
        let share = STEPS[usize::from(self.step)].share;
        (1..=concurrency)
            .take_while(|&segments| segments as f64 <= concurrency as f64 * share)
            .last()
            .unwrap_or(1)
    }

    /// The pause that follows this much work.
    pub(super) fn pause_after(self, worked: Duration) -> Duration {
        let ratio = STEPS[usize::from(self.step)].pause_ratio;
        if ratio == f64::INFINITY {
            return LONGEST_PAUSE;
        }
        worked.min(LONGEST_PAUSE).mul_f64(ratio)
    }

    /// The step as shown to people.
    pub(super) fn in_words(self) -> &'static str {
        match self.step {
            0 => "at full speed",
            1 => "half the segments",
            2 => "one segment",
            3 => "one segment, with pauses",
            _ => "starting no new segments",
        }
    }

    /// Whether no segment may start.
    pub(super) fn stands_still(self) -> bool {
        self.step >= STANDSTILL
    }

    /// One step slower; if `urgent`, straight to the slowest step this reason allows.
    pub(super) fn raised(self, reason: Reason, urgent: bool) -> Self {
        let slowest = slowest(reason);
        let next = match urgent {
            true => slowest,
            false => (self.step + 1).min(slowest),
        };
        Self {
            // Another reason may already have slowed it further.
            step: self.step.max(next),
            reason: Some(reason),
        }
    }

    /// Caps the level at the slowest step these reasons allow.
    pub(super) fn bounded_by(self, reasons: impl Iterator<Item = Reason>) -> Self {
        match reasons.map(slowest).max().map(|most| self.step.min(most)) {
            None | Some(0) => Self::NONE,
            Some(step) => Self { step, ..self },
        }
    }

    /// One step faster.
    pub(super) fn lowered(self) -> Self {
        match self.step {
            0 | 1 => Self::NONE,
            step => Self {
                step: step - 1,
                ..self
            },
        }
    }
}

/// The slowest step a reason allows. Only load that this run itself adds may stop it completely:
/// load from others may never end.
fn slowest(reason: Reason) -> u8 {
    match reason {
        Reason::Parts | Reason::ReplicaDelay | Reason::ReplicaQueue => STANDSTILL,
        Reason::ServerMemory | Reason::Queries | Reason::SlowQueries => 3,
        Reason::Merges | Reason::InsertTime => 2,
        // These limit the run by other means than levels.
        Reason::RowsPerSecond | Reason::BytesPerSecond | Reason::Paused | Reason::Window => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(steps: usize, reason: Reason) -> Level {
        (0..steps).fold(Level::NONE, |level, _| level.raised(reason, false))
    }

    #[test]
    fn each_step_has_fewer_segments_and_longer_pauses_than_the_one_before() {
        let at_once = |steps| after(steps, Reason::Parts).segments_at_once(4);
        assert_eq!([0, 1, 2, 3, 4, 9].map(at_once), [4, 2, 1, 1, 0, 0]);
        assert_eq!(after(1, Reason::Parts).segments_at_once(1), 1);
        let second = Duration::from_secs(1);
        let pause = |steps| after(steps, Reason::Parts).pause_after(second).as_secs();
        assert_eq!([0, 1, 2, 3, 4].map(pause), [0, 0, 0, 1, 5]);
    }

    #[test]
    fn what_others_do_never_makes_a_run_stand_still() {
        for reason in Reason::ALL {
            let level = Level::NONE.raised(reason, true);
            let others = matches!(
                reason,
                Reason::Queries | Reason::SlowQueries | Reason::ServerMemory
            );
            assert!(!others || level.segments_at_once(4) == 1, "{reason:?}");
            assert_eq!(after(9, reason), level, "{reason:?}");
        }
    }

    #[test]
    fn it_comes_back_by_steps_and_forgets_the_reason_then() {
        let mut level = Level::NONE.raised(Reason::Parts, true);
        for _ in 0..STANDSTILL {
            assert_eq!(level.reason(), Some(Reason::Parts));
            level = level.lowered();
        }
        assert_eq!(level, Level::NONE);
        assert_eq!(level.lowered(), Level::NONE);
        assert_eq!(level.reason(), None);
    }

    #[test]
    fn a_milder_reason_does_not_keep_it_at_a_standstill() {
        let both = Level::NONE
            .raised(Reason::Parts, true)
            .raised(Reason::Merges, true);
        assert!(both.stands_still());
        let reasons = [Reason::Parts, Reason::Merges];
        assert!(both.bounded_by(reasons.into_iter()).stands_still());
        let merges = both.bounded_by([Reason::Merges].into_iter());
        assert_eq!(merges.segments_at_once(4), 1);
        assert_eq!(both.bounded_by([].into_iter()), Level::NONE);
    }
}

//! What a task needs of a node, and what a node has.
//!
//! Most tasks need slots alone. Processors, memory, disk and graphics
//! processors are an addition: a node that does not say how much of one it has
//! is not limited in it, except for graphics processors, which it then has none
//! of. What runs is booked as [`Held`]; nothing is ever promised twice.

use kiln_proto::common::v1::Resources;
use kiln_proto::job::v1::TaskSpec;

use super::Error;

/// What one task needs. Of a task with several instances, each needs this.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Needs {
    /// Slots of the node.
    pub slots: u16,
    /// Thousandths of a processor.
    pub cpu_millis: u32,
    /// Memory.
    pub memory_bytes: u64,
    /// Disk below the task's directory.
    pub disk_bytes: u64,
    /// Graphics processors.
    pub gpus: u16,
    /// Nodes that are held together; 1 for all but multi-instance tasks.
    pub instances: u16,
    /// Nothing else runs on its node.
    pub exclusive: bool,
    /// Not on nodes that may be taken away at any time.
    pub dedicated_only: bool,
    /// The job manager: goes first within its job.
    pub manager: bool,
}

/// An amount that a node can run out of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resource {
    /// Thousandths of a processor.
    Cpu,
    /// Bytes of memory.
    Memory,
    /// Bytes of disk.
    Disk,
    /// Graphics processors.
    Gpus,
}

/// What a node has in all, beside slots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capacity {
    /// Thousandths of a processor.
    pub cpu_millis: u64,
    /// Memory.
    pub memory_bytes: u64,
    /// Disk.
    pub disk_bytes: u64,
    /// Graphics processors.
    pub gpus: u64,
}

/// What attempts hold of a node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Held {
    /// Slots.
    pub slots: u32,
    /// Thousandths of a processor.
    pub cpu_millis: u64,
    /// Memory.
    pub memory_bytes: u64,
    /// Disk.
    pub disk_bytes: u64,
    /// Graphics processors.
    pub gpus: u64,
    /// Attempts that want the node for themselves.
    pub exclusive: u32,
}

/// Most instances of one task.
pub const MAX_INSTANCES: u16 = 10_000;

impl Needs {
    /// Slots and nothing else.
    pub const fn slots(slots: u16) -> Self {
        Self {
            slots,
            cpu_millis: 0,
            memory_bytes: 0,
            disk_bytes: 0,
            gpus: 0,
            instances: 1,
            exclusive: false,
            dedicated_only: false,
            manager: false,
        }
    }

    /// Whether there is nothing but slots.
    pub fn is_plain(&self) -> bool {
        *self == Self::slots(self.slots)
    }

    /// Slots that the task takes while it runs, of all its nodes.
    pub fn all_slots(&self) -> u64 {
        u64::from(self.slots) * u64::from(self.instances)
    }

    /// The amount of one resource.
    pub fn amount(&self, resource: Resource) -> u64 {
        match resource {
            Resource::Cpu => self.cpu_millis.into(),
            Resource::Memory => self.memory_bytes,
            Resource::Disk => self.disk_bytes,
            Resource::Gpus => self.gpus.into(),
        }
    }

    /// What a spec asks for beside its slots.
    ///
    /// # Errors
    /// Amounts that are not amounts.
    pub fn of(spec: &TaskSpec, slots: u16) -> Result<Self, Error> {
        let asked = spec.resources.unwrap_or_default();
        let wrong = |name: &str, value: i64| {
            Error::invalid(format!("resources.{name}"), value, "must be 0 (none) or an amount a node can have")
        };
        let bytes = |name: &str, value: i64| u64::try_from(value).map_err(|_| wrong(name, value));
        Ok(Self {
            cpu_millis: u32::try_from(asked.cpu_millis).map_err(|_| wrong("cpuMillis", asked.cpu_millis))?,
            memory_bytes: bytes("memoryBytes", asked.memory_bytes)?,
            disk_bytes: bytes("diskBytes", asked.disk_bytes)?,
            // At least one, also if that is left out.
            instances: spec
                .multi_instance
                .as_ref()
                .map_or(1, |settings| u16::try_from(settings.number_of_instances).unwrap_or(1).clamp(1, MAX_INSTANCES)),
            gpus: u16::try_from(asked.gpus).map_err(|_| wrong("gpus", asked.gpus.into()))?,
            ..Self::slots(slots)
        })
    }
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Cpu, Self::Memory, Self::Disk, Self::Gpus];

    /// Its name in answers.
    pub fn name(self) -> &'static str {
        match self {
            Self::Cpu => "cpuMillis",
            Self::Memory => "memoryBytes",
            Self::Disk => "diskBytes",
            Self::Gpus => "gpus",
        }
    }
}

impl Capacity {
    /// Of a node that says nothing.
    pub const UNKNOWN: Self = Self { cpu_millis: u64::MAX, memory_bytes: u64::MAX, disk_bytes: u64::MAX, gpus: 0 };

    /// As an agent says it; 0 means that it does not say.
    pub fn of(said: Option<&Resources>) -> Self {
        let Some(said) = said else { return Self::UNKNOWN };
        let limit = |amount: i64| u64::try_from(amount).ok().filter(|amount| *amount > 0).unwrap_or(u64::MAX);
        Self {
            cpu_millis: limit(said.cpu_millis),
            memory_bytes: limit(said.memory_bytes),
            disk_bytes: limit(said.disk_bytes),
            gpus: u64::try_from(said.gpus).unwrap_or(0),
        }
    }

    /// The amount of one resource.
    pub fn amount(&self, resource: Resource) -> u64 {
        match resource {
            Resource::Cpu => self.cpu_millis,
            Resource::Memory => self.memory_bytes,
            Resource::Disk => self.disk_bytes,
            Resource::Gpus => self.gpus,
        }
    }

    /// The first resource of which less is left than is needed.
    pub fn lacks(&self, held: &Held, needs: &Needs) -> Option<Resource> {
        Resource::ALL.into_iter().find(|resource| {
            let needed = needs.amount(*resource);
            needed > 0 && held.amount(*resource).saturating_add(needed) > self.amount(*resource)
        })
    }

    /// Whether so much can be held at once.
    pub fn covers(&self, held: &Held) -> bool {
        Resource::ALL.into_iter().all(|resource| held.amount(resource) <= self.amount(resource))
    }
}

impl Held {
    /// The amount of one resource.
    pub fn amount(&self, resource: Resource) -> u64 {
        match resource {
            Resource::Cpu => self.cpu_millis,
            Resource::Memory => self.memory_bytes,
            Resource::Disk => self.disk_bytes,
            Resource::Gpus => self.gpus,
        }
    }

    /// Books an attempt.
    pub fn add(&mut self, needs: &Needs) {
        self.slots += u32::from(needs.slots);
        self.cpu_millis = self.cpu_millis.saturating_add(needs.cpu_millis.into());
        self.memory_bytes = self.memory_bytes.saturating_add(needs.memory_bytes);
        self.disk_bytes = self.disk_bytes.saturating_add(needs.disk_bytes);
        self.gpus = self.gpus.saturating_add(needs.gpus.into());
        self.exclusive += u32::from(needs.exclusive);
    }

    /// Takes an attempt off the books.
    pub fn remove(&mut self, needs: &Needs) {
        self.slots = self.slots.saturating_sub(needs.slots.into());
        self.cpu_millis = self.cpu_millis.saturating_sub(needs.cpu_millis.into());
        self.memory_bytes = self.memory_bytes.saturating_sub(needs.memory_bytes);
        self.disk_bytes = self.disk_bytes.saturating_sub(needs.disk_bytes);
        self.gpus = self.gpus.saturating_sub(needs.gpus.into());
        self.exclusive = self.exclusive.saturating_sub(u32::from(needs.exclusive));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_that_says_nothing_has_no_gpus_and_no_other_limit() {
        let held = Held::default();
        let wide = Needs { cpu_millis: u32::MAX, memory_bytes: 1 << 60, ..Needs::slots(1) };
        assert_eq!(Capacity::of(None).lacks(&held, &wide), None);
        assert_eq!(Capacity::of(None).lacks(&held, &Needs { gpus: 1, ..wide }), Some(Resource::Gpus));
        let said = Resources { cpu_millis: 0, memory_bytes: 100, disk_bytes: 0, gpus: 2 };
        let node = Capacity::of(Some(&said));
        assert_eq!(node.lacks(&held, &Needs { memory_bytes: 101, ..Needs::slots(1) }), Some(Resource::Memory));
        assert_eq!(node.lacks(&held, &Needs { memory_bytes: 100, gpus: 2, ..Needs::slots(1) }), None);
    }

    #[test]
    fn what_is_held_is_not_given_again() {
        let node = Capacity { cpu_millis: 1000, ..Capacity::UNKNOWN };
        let half = Needs { cpu_millis: 500, exclusive: true, ..Needs::slots(2) };
        let mut held = Held::default();
        held.add(&half);
        assert_eq!((held.slots, held.exclusive), (2, 1));
        assert_eq!(node.lacks(&held, &half), None);
        held.add(&half);
        assert!(node.covers(&held));
        assert_eq!(node.lacks(&held, &Needs { cpu_millis: 1, ..Needs::slots(1) }), Some(Resource::Cpu));
        assert_eq!(node.lacks(&held, &Needs::slots(1)), None, "who asks for none may always come");
        held.remove(&half);
        held.remove(&half);
        assert_eq!(held, Held::default());
    }

    #[test]
    fn amounts_that_are_none_are_refused() {
        let spec = |resources| TaskSpec { resources: Some(resources), ..TaskSpec::default() };
        let negative = spec(Resources { memory_bytes: -1, ..Resources::default() });
        assert!(Needs::of(&negative, 1).unwrap_err().to_string().contains("resources.memoryBytes"));
        assert!(Needs::of(&spec(Resources { gpus: 70_000, ..Resources::default() }), 1).is_err());
        assert!(Needs::of(&TaskSpec::default(), 3).unwrap().is_plain());
        let some = Needs::of(&spec(Resources { gpus: 1, ..Resources::default() }), 3).unwrap();
        assert_eq!((some.slots, some.gpus, some.is_plain()), (3, 1, false));
    }
}

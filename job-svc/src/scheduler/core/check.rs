//! The rules that hold after every step, as a test of them.

use super::*;

impl Core {
    /// Tests the rules that hold after every step.
    ///
    /// # Errors
    /// Which rule is broken.
    pub fn check(&self) -> Result<(), String> {
        for (index, node) in self.nodes.iter().enumerate() {
            let Some(node) = node else { continue };
            let mut held = Held::default();
            for row in &node.rows {
                let live = self.live.get(row).ok_or_else(|| format!("row {row} on a node is not live"))?;
                if self.instance_on(*row, live, u32::try_from(index).unwrap_or(u32::MAX)).is_none() {
                    return Err(format!("row {row} is on a node that is not its own"));
                }
                if !node.ahead.contains(row) {
                    held.add(&live.needs);
                }
            }
            if held != node.held {
                return Err(format!("node {} holds {held:?}, not {:?}", node.name, node.held));
            }
            if node.conn.is_some() && !node.overbooked && !node.has_what_it_holds() {
                return Err(format!("node {} holds more than it has: {held:?} of {:?}", node.name, node.status));
            }
        }
        self.check_gangs()?;
        for (index, claims) in &self.claims {
            let node = self.nodes.get(*index as usize).and_then(Option::as_ref);
            if claims.is_empty() || node.is_some_and(|node| node.queued.is_some()) {
                return Err(format!("node {index} is claimed and open to others"));
            }
        }
        for (key, job) in &self.jobs {
            let of_job = |zombie: bool| {
                self.live.values().filter(|live| live.job == *key && (live.phase == Phase::Zombie) == zombie).count()
            };
            if of_job(false) != job.running as usize || of_job(true) != job.zombies as usize {
                return Err(format!("job {key} counts its attempts wrongly"));
            }
            let ready: usize = job.ready.values().map(BTreeMap::len).sum();
            let ready = ready + self.parked.values().filter(|(job, _)| job == key).count();
            if ready != job.ready_count {
                return Err(format!("job {key} counts its waiting tasks wrongly"));
            }
            for row in job.ready.values().flat_map(BTreeMap::keys) {
                if self.live.contains_key(row) {
                    return Err(format!("row {row} waits and runs"));
                }
            }
        }
        self.check_dependants()?;
        self.check_lines()?;
        self.check_shapes()
    }

    fn check_shapes(&self) -> Result<(), String> {
        for (shape, waiting) in self.shapes.counts() {
            let ready: usize = self.jobs.values().filter_map(|job| job.ready.get(&shape)).map(BTreeMap::len).sum();
            if ready != waiting as usize {
                return Err(format!("{shape:?} is waited for by {ready}, not {waiting}"));
            }
            // Whoever is not tried must not fit.
            let Some(needs) = self.shapes.needs(shape) else { continue };
            let fits = |node: &&Node| node.fits(&needs);
            if !self.shapes.may_fit(shape, u16::MAX)
                && self.nodes.iter().flatten().filter(fits).count() >= usize::from(needs.instances)
            {
                return Err(format!("{shape:?} ({needs:?}) has room and is not tried"));
            }
        }
        if !self.parked.is_empty() && self.shapes.counts().count() < shapes::MAX_SHAPES {
            return Err("a task is kept out though there is a place for its needs".to_owned());
        }
        Ok(())
    }
}

//! Which files a program can still open once it is confined: Landlock.

use std::path::{Path, PathBuf};

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, PathFd,
    Ruleset, RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, Scope,
};

/// What later kernels add is not asked for, so that one program means one thing.
const KNOWN: ABI = ABI::V6;

/// Paths that stay in use.
#[derive(Debug, Clone, Default)]
pub struct Paths {
    /// Files, and directories with all that is below, to read.
    pub read: Vec<PathBuf>,
    /// The same to read, write, make and remove.
    pub write: Vec<PathBuf>,
}

impl Paths {
    /// Rules that allow these and nothing else: no other file, no TCP port, no abstract socket of others.
    /// Of a path that is not there nothing is allowed. A kernel without Landlock, or with less of it, takes
    /// what it knows.
    ///
    /// # Errors
    /// The kernel refuses.
    pub fn rules(&self) -> Result<RulesetCreated, RulesetError> {
        let mut rules = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(KNOWN))?
            .handle_access(AccessNet::from_all(KNOWN))?
            // Not signals: kernels before 6.15 then refuse those between threads that confined themselves.
            .scope(Scope::AbstractUnixSocket)?
            .create()?;
        for path in &self.read {
            rules = allow(rules, path, AccessFs::from_read(KNOWN))?;
        }
        for path in &self.write {
            rules = allow(rules, path, AccessFs::from_all(KNOWN))?;
        }
        Ok(rules)
    }
}

fn allow(
    rules: RulesetCreated,
    path: &Path,
    access: BitFlags<AccessFs>,
) -> Result<RulesetCreated, RulesetError> {
    let access = access & !AccessFs::Execute;
    match PathFd::new(path) {
        Ok(fd) if path.is_dir() => rules.add_rule(PathBeneath::new(fd, access)),
        Ok(fd) => rules.add_rule(PathBeneath::new(fd, access & AccessFs::from_file(KNOWN))),
        Err(_) => Ok(rules),
    }
}

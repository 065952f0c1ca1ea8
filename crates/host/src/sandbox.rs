//! A process that looks at a hostile file and can do nothing else: what it needs is opened first, then it gives up the
//! file system and the network (landlock), all system calls but a handful (seccomp), and memory and time beyond a
//! limit. None of it can be taken back, and each part says whether the kernel really enforces it.

use std::collections::BTreeMap;
use std::fs::File;
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::time::{Duration, Instant};

use cowbell_block::{Error, ErrorKind, Result};
use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetStatus,
};
use rustix::process::{Resource, Rlimit, setrlimit};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use crate::error::{OpenError, errno_of};
use crate::path::path_of;

/// What a process may use.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of address space.
    pub memory_bytes: u64,
    /// Seconds of CPU; the kernel ends the process behind them.
    pub cpu_seconds: u64,
}

/// Whether a part of the confinement holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// It does; what it is, for people.
    Holds(String),
    /// The kernel does not know all of it; what is left.
    Partly(String),
    /// It does not, and why.
    Absent(String),
}

impl Part {
    /// Whether it holds as a whole.
    pub fn holds(&self) -> bool {
        matches!(self, Self::Holds(_))
    }
}

/// What holds a process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Confinement {
    /// No file can be opened, and no connection made.
    pub landlock: Part,
    /// No system call but the ones that reading, printing and memory need.
    pub seccomp: Part,
}

/// Limits what this process may use from now on.
///
/// # Errors
/// The host refused.
pub fn limit(limits: Limits) -> Result<()> {
    let set = |resource, value| {
        let both = Rlimit { current: Some(value), maximum: Some(value) };
        setrlimit(resource, both).map_err(|errno| Error::from_errno(errno.raw_os_error()))
    };
    set(Resource::Core, 0)?;
    set(Resource::As, limits.memory_bytes)?;
    set(Resource::Cpu, limits.cpu_seconds)
}

/// Confines this process for the rest of its life, as far as the kernel can. Threads that exist are confined by
/// seccomp alone, so there should be none.
pub fn confine() -> Confinement {
    // In this order: landlock needs calls that the filter forbids.
    Confinement { landlock: give_up_files(), seccomp: filter_calls() }
}

/// The newest rules that are asked for; older kernels enforce what they know.
const LANDLOCK_ABI: ABI = ABI::V5;

fn give_up_files() -> Part {
    let made = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(LANDLOCK_ABI))
        .and_then(|rules| rules.handle_access(AccessNet::from_all(LANDLOCK_ABI)))
        .and_then(Ruleset::create)
        .and_then(|rules| rules.restrict_self());
    match made {
        Ok(status) => match status.ruleset {
            RulesetStatus::FullyEnforced => Part::Holds("no file and no connection can be opened".into()),
            RulesetStatus::PartiallyEnforced => {
                Part::Partly("an older kernel knows a part of the rules".into())
            }
            RulesetStatus::NotEnforced => Part::Absent("the kernel does not offer it".into()),
        },
        Err(e) => Part::Absent(e.to_string()),
    }
}

/// What is needed to read what is open, to print, and to have memory.
const CALLS: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_pread64,
    libc::SYS_write,
    libc::SYS_writev,
    libc::SYS_lseek,
    libc::SYS_fstat,
    libc::SYS_close,
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_rt_sigaction,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_sigaltstack,
    libc::SYS_clock_gettime,
    libc::SYS_getrandom,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// The same, as long as the memory is not to be executed: its third argument says what for.
const CALLS_FOR_MEMORY: &[libc::c_long] = &[libc::SYS_mmap, libc::SYS_mprotect];

fn filter_calls() -> Part {
    let filtered =
        program().and_then(|program| seccompiler::apply_filter(&program).map_err(|e| e.to_string()));
    match filtered {
        Ok(()) => {
            let count = CALLS.len() + CALLS_FOR_MEMORY.len();
            Part::Holds(format!("{count} system calls are left"))
        }
        Err(reason) => Part::Absent(reason),
    }
}

fn program() -> std::result::Result<BpfProgram, String> {
    let text = |e: seccompiler::BackendError| e.to_string();
    let not_executed =
        SeccompCondition::new(2, SeccompCmpArgLen::Dword, SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64), 0)
            .map_err(text)?;
    let mut rules: BTreeMap<libc::c_long, Vec<SeccompRule>> =
        CALLS.iter().map(|call| (*call, Vec::new())).collect();
    for call in CALLS_FOR_MEMORY {
        rules.insert(*call, vec![SeccompRule::new(vec![not_executed.clone()]).map_err(text)?]);
    }
    let arch = std::env::consts::ARCH.try_into().map_err(text)?;
    // Refused rather than killed: what is left then says so.
    let refuse = SeccompAction::Errno(libc::EPERM as u32);
    let filter = SeccompFilter::new(rules, refuse, SeccompAction::Allow, arch).map_err(text)?;
    filter.try_into().map_err(text)
}

/// A file that is read and nothing else, for a limited time.
#[derive(Debug)]
pub struct Untrusted {
    file: File,
    len: u64,
    until: Instant,
}

#[derive(Debug, thiserror::Error)]
#[error("the time for reading is up")]
struct TimeIsUp;

impl Untrusted {
    /// Opens a regular file or a block device for reading, without waiting for anybody and without a lock.
    ///
    /// # Errors
    /// The host's; or it is something else.
    pub fn open(name: &str, time: Duration) -> Result<Self> {
        let refused = |e: std::io::Error| {
            let errno = errno_of(&e).raw_os_error();
            OpenError::Refused { filename: name.to_owned(), errno }.into_error()
        };
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY;
        let opened = std::fs::OpenOptions::new().read(true).custom_flags(flags).open(path_of(name));
        let file = opened.map_err(refused)?;
        let kind = file.metadata().map_err(refused)?;
        let len = match kind.file_type() {
            kind if kind.is_block_device() => {
                rustix::fs::seek(&file, rustix::fs::SeekFrom::End(0)).map_err(|e| refused(e.into()))?
            }
            _ if kind.is_file() => kind.len(),
            other => {
                let what = match other {
                    kind if kind.is_dir() => "a directory",
                    kind if kind.is_fifo() => "a pipe",
                    kind if kind.is_socket() => "a socket",
                    _ => "a character device",
                };
                return Err(OpenError::NotStorage { filename: name.to_owned(), what }.into_error());
            }
        };
        Ok(Self { file, len, until: Instant::now() + time })
    }

    /// Length in bytes.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether there are no bytes.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Reads some bytes from `offset` on; 0 at the end.
    ///
    /// # Errors
    /// The host's; or the time is up.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<usize> {
        if Instant::now() > self.until {
            return Err(Error::new(ErrorKind::Io, TimeIsUp));
        }
        self.file.read_at(buffer, offset).map_err(|e| Error::from_errno(errno_of(&e).raw_os_error()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_filter_can_be_made_for_this_machine() {
        assert!(program().is_ok_and(|program| program.len() > CALLS.len()));
    }

    #[test]
    fn only_storage_is_read() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("file");
        std::fs::write(&path, b"content").expect("written");
        let name = path.to_str().expect("text");
        let file = Untrusted::open(name, Duration::from_secs(60)).expect("there");
        let mut buffer = [0; 16];
        assert_eq!((file.len(), file.read_at(3, &mut buffer).expect("read")), (7, 4));
        assert_eq!(&buffer[..4], b"tent");
        let late = Untrusted::open(name, Duration::ZERO).expect("there");
        assert_eq!(late.read_at(0, &mut buffer).expect_err("late").to_string(), "the time for reading is up");
        let error = Untrusted::open("/dev/null", Duration::ZERO).expect_err("no storage");
        assert!(error.to_string().contains("is a character device"), "{error}");
        let dir = dir.path().to_str().expect("text");
        let error = Untrusted::open(dir, Duration::ZERO).expect_err("no storage");
        assert!(error.to_string().contains("is a directory"), "{error}");
    }
}

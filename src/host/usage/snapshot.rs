//! Snapshots of the process table, out of /proc: of all of it, or of a family only.
//!
//! Who is in a family, and when one is enough, is [`Tree`](crate::session::usage::Tree)'s business. Here is how the
//! processes are found, and in which order they are read.
//!
//! **Found**: those that are known by their ids, others in the lists of children that the kernel keeps for each thread
//! (/proc/PID/task/TID/children). A list that changes while it is read may lack somebody who is there, so nobody who is
//! known depends on one. A kernel may also keep no lists (`CONFIG_PROC_CHILDREN`).
//!
//! **Order**: parents before their children. A child that ends meanwhile is then in neither's time, and turns up next
//! time, rather than in both. In a family that always holds, for whoever can come to wait for a process is above it; in the
//! whole table as a rule, for process ids begin again some day.
//!
//! **Cost**: a family's is that of its own processes and threads, however many others there are. The whole table takes
//! about 10 us a process of the machine. A process takes as much in both, and its lists of children 5 us a thread.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read as _};

use crate::session::usage::{Family, ProcessStat, Units};

/// A line of /proc/PID/stat is below 400 bytes.
const STAT_BYTES: usize = 1024;

/// Of a list of children this much is read at once: the kernel gives no more than a page.
const LIST_BYTES: usize = 4096;

/// The processes of this family, or all that can be seen where there is no family, or it cannot be followed.
///
/// # Errors
/// Where something cannot be read that may be there. Those that are gone meanwhile are gone.
pub(super) fn take(family: Option<&Family>) -> io::Result<Vec<ProcessStat>> {
    if let Some(family) = family
        && let Some(table) = walk(family)?
    {
        return Ok(table);
    }
    scan()
}

/// All that can be seen.
pub(super) fn scan() -> io::Result<Vec<ProcessStat>> {
    let units = units();
    let mut pids = numbers_in("/proc")?;
    pids.sort_unstable();
    let all = pids.into_iter().map(|pid| read_stat(pid, units));
    all.filter_map(Result::transpose).collect()
}

/// A family; `None` where its keeper is gone, or the kernel has no lists of children.
pub(super) fn walk(family: &Family) -> io::Result<Option<Vec<ProcessStat>>> {
    let units = units();
    let keeper = read_stat(family.keeper.0, units)?.filter(|found| found.id() == family.keeper);
    let Some(keeper) = keeper else {
        return Ok(None);
    };
    let mut children = Vec::new();
    if !read_children(&keeper, &mut children)? {
        return Ok(None);
    }
    let mut walk = Walk {
        units,
        table: vec![keeper],
        passed: HashSet::from([keeper.pid, family.host]),
    };
    walk.table.extend(read_stat(family.host, units)?);
    walk.all_below(children)?;
    // Whom no list had.
    for &(pid, start_time) in &family.known {
        if walk.passed.insert(pid)
            && let Some(process) = read_stat(pid, units)?
            && process.start_time == start_time
        {
            walk.table.push(process);
            let mut children = Vec::new();
            read_children(&process, &mut children)?;
            walk.all_below(children)?;
        }
    }
    Ok(Some(walk.table))
}

struct Walk {
    units: Units,
    table: Vec<ProcessStat>,
    passed: HashSet<u32>,
}

impl Walk {
    /// Adds these and all below them, but for those that were passed already.
    fn all_below(&mut self, mut waiting: Vec<u32>) -> io::Result<()> {
        while let Some(pid) = waiting.pop() {
            if self.passed.insert(pid)
                && let Some(process) = read_stat(pid, self.units)?
            {
                self.table.push(process);
                read_children(&process, &mut waiting)?;
            }
        }
        Ok(())
    }
}

/// `None` where there is no such process.
fn read_stat(pid: u32, units: Units) -> io::Result<Option<ProcessStat>> {
    let mut line = [0; STAT_BYTES];
    let read = File::open(format!("/proc/{pid}/stat")).and_then(|mut file| file.read(&mut line));
    Ok(there(read)?.and_then(|length| ProcessStat::parse(&line[..length], units)))
}

/// Adds the children of all of its threads. `false` where there is no list at all.
fn read_children(process: &ProcessStat, found: &mut Vec<u32>) -> io::Result<bool> {
    let pid = process.pid;
    // The first thread's number is the process's.
    if process.threads <= 1 {
        return read_list(pid, pid, found);
    }
    let mut any = false;
    for thread in there(numbers_in(&format!("/proc/{pid}/task")))?.unwrap_or_default() {
        any |= read_list(pid, thread, found)?;
    }
    Ok(any)
}

/// Adds one thread's children: those that it forked, and those of threads that ended. `false` where there is no list.
fn read_list(pid: u32, thread: u32, found: &mut Vec<u32>) -> io::Result<bool> {
    let file = File::open(format!("/proc/{pid}/task/{thread}/children"));
    let Some(mut file) = there(file)? else {
        return Ok(false);
    };
    let mut part = [0; LIST_BYTES];
    let mut number: Option<u32> = None;
    while let Some(length @ 1..) = there(file.read(&mut part))? {
        for byte in &part[..length] {
            if byte.is_ascii_digit() {
                let before = number.unwrap_or(0);
                number = Some(before.wrapping_mul(10).wrapping_add(u32::from(byte - b'0')));
            } else {
                found.extend(number.take());
            }
        }
    }
    found.extend(number);
    Ok(true)
}

/// Those of a folder's names that are numbers.
fn numbers_in(path: &str) -> io::Result<Vec<u32>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(path)? {
        numbers.extend(
            entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<u32>().ok()),
        );
    }
    Ok(numbers)
}

/// `None` where what was to be read is gone, or not for us to see. Whatever else went wrong (no descriptor is free) says
/// nothing of the process, which must not be taken for gone.
fn there<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(error)
            if matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied
            ) || error.raw_os_error() == Some(libc::ESRCH) =>
        {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn units() -> Units {
    // SAFETY: takes an integer.
    let setting = |name| unsafe { libc::sysconf(name) };
    Units {
        tick: 1_000_000
            / u64::try_from(setting(libc::_SC_CLK_TCK))
                .unwrap_or(100)
                .max(1),
        page_bytes: u64::try_from(setting(libc::_SC_PAGESIZE)).unwrap_or(4096),
    }
}

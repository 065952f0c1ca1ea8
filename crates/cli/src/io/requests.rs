//! read, write, discard, flush, and their asynchronous kin.

use std::time::Instant;

use cowbell_block::node::REQUEST_BYTES_MAX;
use cowbell_block::{Buf, Bufs, Completion, Flags, Operation, Request};

use super::figures::{Figures, Style, dump, text};
use super::session::Session;
use super::shell::{Done, Failed};
use super::words::{aligned, number, pattern};
use crate::face::Face;
use crate::flags::Args;
use crate::flags::io::{self as flags, IoCommand};
use crate::out::complain;
use cowbell_host::path_of;

/// What buffers hold that nobody has filled.
const FILL: u8 = 0xcd;
/// What read buffers hold before the read.
const READ_FILL: u8 = 0xab;

/// Misplaced buffers start this many bytes into a page.
const MISALIGN_BYTES: usize = 16;

fn buffer(session: &Session<'_>, len: u64, byte: u8) -> Buf {
    let len = len as usize;
    let mut buf = match session.misalign {
        true => {
            let mut whole = Buf::zeroed(len + MISALIGN_BYTES);
            drop(whole.split_to(MISALIGN_BYTES));
            whole
        }
        false => Buf::scratch(len),
    };
    buf.fill(byte);
    buf
}

/// Prints a message and fails.
macro_rules! or_say {
    ($session:expr, $result:expr) => {
        match $result {
            Ok(value) => value,
            Err(text) => return $session.fail(&text),
        }
    };
}

/// What a read is checked against and how it is shown; owned, since it outlives the command with aio.
struct Look {
    verify: Option<(u8, u64, u64)>,
    quiet: bool,
    dump: bool,
    style: Style,
}

impl Look {
    /// Checks and shows what was read; the text, and whether it is what was expected.
    fn at(&self, offset: u64, bufs: &Bufs, started: Instant) -> (String, bool) {
        let took = started.elapsed();
        let data = bufs.to_contiguous();
        let mut out = String::new();
        let mut good = true;
        if let Some((byte, from, len)) = self.verify {
            let part = &data[from as usize..(from + len) as usize];
            if part.iter().any(|b| *b != byte) {
                out = format!("Pattern verification failed at offset {}, {len} bytes\n", offset + from);
                good = false;
            }
        }
        if !self.quiet {
            if self.dump {
                out.push_str(&dump(offset, &data));
            }
            let len = data.len() as u64;
            out.push_str(&text(&Figures { verb: "read", offset, asked: len, done: len, took }, self.style));
        }
        (out, good)
    }
}

fn style(args: &Args) -> Style {
    if args.has(&flags::MACHINE) { Style::Machine } else { Style::Human }
}

/// `off len`.
fn one_range(args: &Args) -> Result<Option<(u64, u64)>, String> {
    let [offset, len] = args.operands.as_slice() else { return Ok(None) };
    Ok(Some((number(offset)?, number(len)?)))
}

/// `off len [len..]`.
fn ranges(args: &Args) -> Result<Option<(u64, Vec<u64>)>, String> {
    let [offset, lens @ ..] = args.operands.as_slice() else { return Ok(None) };
    if lens.is_empty() {
        return Ok(None);
    }
    let offset = number(offset)?;
    let mut total = 0;
    let mut parsed = Vec::with_capacity(lens.len());
    for word in lens {
        let len = number(word)?;
        if len > REQUEST_BYTES_MAX {
            return Err(format!("Argument '{word}' exceeds maximum size {REQUEST_BYTES_MAX}\n"));
        }
        if total > REQUEST_BYTES_MAX - len {
            return Err(format!("The total number of bytes exceed the maximum size {REQUEST_BYTES_MAX}\n"));
        }
        total += len;
        parsed.push(len);
    }
    Ok(Some((offset, parsed)))
}

pub(super) async fn read(session: &mut Session<'_>, command: &IoCommand, args: &Args) -> Done {
    let byte = or_say!(session, args.value(&flags::VERIFY).map(pattern).transpose());
    let from = or_say!(session, args.value(&flags::VERIFY_AT).map(number).transpose());
    let verified = or_say!(session, args.value(&flags::VERIFY_LEN).map(number).transpose());
    let Some((offset, len)) = or_say!(session, one_range(args)) else {
        return session.bad_usage(command, "read");
    };
    if len > REQUEST_BYTES_MAX {
        let word = args.operands.last().map_or("", String::as_str);
        return session.fail(&format!("length cannot exceed {REQUEST_BYTES_MAX}, given {word}\n"));
    }
    if byte.is_none() && (from.is_some() || verified.is_some()) {
        return session.bad_usage(command, "read");
    }
    let start = from.unwrap_or(0);
    let Some(count) =
        verified.or_else(|| len.checked_sub(start)).filter(|n| n.checked_add(start) <= Some(len))
    else {
        return session.fail("pattern verification range exceeds end of read data\n");
    };
    let vmstate = args.has(&flags::VMSTATE);
    if vmstate {
        or_say!(session, aligned(offset, "offset").and_then(|()| aligned(len, "count")));
    }
    let look = Look {
        verify: byte.map(|byte| (byte, start, count)),
        quiet: args.has(&flags::QUIET),
        dump: args.has(&flags::DUMP),
        style: style(args),
    };
    let mut request = Request::read(offset, buffer(session, len, READ_FILL));
    if vmstate {
        request.op = Operation::VmStateRead;
    }
    read_and_show(session, request, &look, "read").await
}

pub(super) async fn readv(session: &mut Session<'_>, command: &IoCommand, args: &Args) -> Done {
    let byte = or_say!(session, args.value(&flags::VERIFY).map(pattern).transpose());
    let Some((offset, lens)) = or_say!(session, ranges(args)) else {
        return session.bad_usage(command, "readv");
    };
    let look = vector_look(args, byte, &lens);
    let request = Request::read(offset, vector(session, &lens, READ_FILL));
    read_and_show(session, request, &look, "readv").await
}

fn vector(session: &Session<'_>, lens: &[u64], byte: u8) -> Bufs {
    lens.iter().map(|len| buffer(session, *len, byte)).collect()
}

fn vector_look(args: &Args, byte: Option<u8>, lens: &[u64]) -> Look {
    Look {
        verify: byte.map(|byte| (byte, 0, lens.iter().sum())),
        quiet: args.has(&flags::QUIET),
        dump: args.has(&flags::DUMP),
        style: style(args),
    }
}

async fn read_and_show(session: &mut Session<'_>, request: Request, look: &Look, name: &str) -> Done {
    let (offset, started) = (request.offset, Instant::now());
    let bufs = match session.request(request).await.into_bufs() {
        Ok(bufs) => bufs,
        Err(e) => return session.fail(&format!("{name} failed: {}\n", errno(&e))),
    };
    let (text, good) = look.at(offset, &bufs, started);
    session.put(&text);
    bufs.recycle();
    if good { Ok(()) } else { Err(Failed) }
}

/// The reference knows only the number of an error.
pub(super) fn errno(error: &cowbell_block::Error) -> String {
    cowbell_block::error::errno_text(error.errno())
}

/// The modifiers of a write, or the message about those that exclude each other.
fn write_flags(args: &Args) -> Result<Flags, String> {
    let zeroes = args.has(&flags::ZEROES);
    let mut modifiers = Flags::empty();
    let mut set = |given: bool, flag: Flags| {
        if given {
            modifiers |= flag;
        }
    };
    set(args.has(&flags::FUA), Flags::FUA);
    set(args.has(&flags::NO_FALLBACK), Flags::NO_FALLBACK);
    set(args.has(&flags::UNMAP), Flags::MAY_UNMAP);
    if args.has(&flags::VMSTATE) && zeroes {
        return Err("-b and -z cannot be specified at the same time\n".to_owned());
    }
    let unlike_fua = args.has(&flags::VMSTATE) || args.has(&flags::COMPRESSED);
    if modifiers.contains(Flags::FUA) && unlike_fua {
        return Err("-f and -b or -c cannot be specified at the same time\n".to_owned());
    }
    if modifiers.contains(Flags::NO_FALLBACK) && !zeroes {
        return Err("-n requires -z to be specified\n".to_owned());
    }
    if modifiers.contains(Flags::MAY_UNMAP) && !zeroes {
        return Err("-u requires -z to be specified\n".to_owned());
    }
    if args.has(&flags::COMPRESSED) && !zeroes && !args.has(&flags::VMSTATE) {
        modifiers |= Flags::COMPRESSED;
    }
    Ok(modifiers)
}

pub(super) async fn write(session: &mut Session<'_>, command: &IoCommand, args: &Args) -> Done {
    let byte = or_say!(session, args.value(&flags::PATTERN).map(pattern).transpose());
    if args.operands.len() != 2 {
        return session.bad_usage(command, "write");
    }
    let modifiers = or_say!(session, write_flags(args));
    let file = args.value(&flags::PATTERN_FILE);
    let zeroes = args.has(&flags::ZEROES);
    if usize::from(zeroes) + usize::from(byte.is_some()) + usize::from(file.is_some()) > 1 {
        return session.fail("Only one of -z, -P, and -s can be specified at the same time\n");
    }
    let Some((offset, len)) = or_say!(session, one_range(args)) else {
        return session.bad_usage(command, "write");
    };
    if len > REQUEST_BYTES_MAX && !modifiers.contains(Flags::NO_FALLBACK) {
        let word = args.operands.last().map_or("", String::as_str);
        return session.fail(&format!("length cannot exceed {REQUEST_BYTES_MAX} without -n, given {word}\n"));
    }
    let vmstate = args.has(&flags::VMSTATE);
    if vmstate || args.has(&flags::COMPRESSED) {
        or_say!(session, aligned(offset, "offset").and_then(|()| aligned(len, "count")));
    }
    let request = if zeroes {
        Request::write_zeroes(offset, len)
    } else {
        let mut buf = buffer(session, len, byte.unwrap_or(FILL));
        if let Some(name) = file {
            fill_from_file(&mut buf, name)?;
        }
        let mut request = Request::write(offset, buf);
        if vmstate {
            request.op = Operation::VmStateWrite;
        }
        request
    };
    write_and_show(session, request.with_flags(modifiers), args, "write").await
}

/// Fills a buffer with a file's content, repeated.
fn fill_from_file(buf: &mut Buf, name: &str) -> Done {
    let content = match std::fs::read(path_of(name)) {
        Ok(content) => content,
        Err(e) => {
            let code = e.raw_os_error().unwrap_or(0);
            complain(format_args!("{name}: {}", cowbell_block::error::errno_text(code)));
            return Err(Failed);
        }
    };
    if content.is_empty() {
        complain(format_args!("{name}: file is empty"));
        return Err(Failed);
    }
    for chunk in buf.chunks_mut(content.len()) {
        chunk.copy_from_slice(&content[..chunk.len()]);
    }
    Ok(())
}

pub(super) async fn writev(session: &mut Session<'_>, command: &IoCommand, args: &Args) -> Done {
    let byte = or_say!(session, args.value(&flags::PATTERN).map(pattern).transpose());
    let Some((offset, lens)) = or_say!(session, ranges(args)) else {
        return session.bad_usage(command, "writev");
    };
    let modifiers = if args.has(&flags::FUA) { Flags::FUA } else { Flags::empty() };
    let bufs = vector(session, &lens, byte.unwrap_or(FILL));
    let request = Request::write(offset, bufs).with_flags(modifiers);
    write_and_show(session, request, args, "writev").await
}

async fn write_and_show(session: &mut Session<'_>, request: Request, args: &Args, name: &str) -> Done {
    let (offset, len, started) = (request.offset, request.len, Instant::now());
    match session.request(request).await.into_bufs() {
        Ok(bufs) => bufs.recycle(),
        Err(e) => return session.fail(&format!("{name} failed: {}\n", errno(&e))),
    }
    if !args.has(&flags::QUIET) {
        let took = started.elapsed();
        let figures = Figures { verb: "wrote", offset, asked: len, done: len, took };
        session.put(&text(&figures, style(args)));
    }
    Ok(())
}

pub(super) async fn discard(session: &mut Session<'_>, command: &IoCommand, args: &Args) -> Done {
    let Some((offset, len)) = or_say!(session, one_range(args)) else {
        return session.bad_usage(command, "discard");
    };
    if len > REQUEST_BYTES_MAX {
        let word = args.operands.last().map_or("", String::as_str);
        return session.fail(&format!("length cannot exceed {REQUEST_BYTES_MAX}, given {word}\n"));
    }
    let started = Instant::now();
    if let Err(e) = session.request(Request::discard(offset, len)).await.result {
        return session.fail(&format!("discard failed: {}\n", errno(&e)));
    }
    if !args.has(&flags::QUIET) {
        let took = started.elapsed();
        let figures = Figures { verb: "discard", offset, asked: len, done: len, took };
        session.put(&text(&figures, style(args)));
    }
    Ok(())
}

pub(super) async fn flush(session: &mut Session<'_>) -> Done {
    match session.request(Request::flush()).await.result {
        Ok(_) => Ok(()),
        Err(e) => {
            // The reference says it by its status alone.
            if session.cx.face == Face::Cowbell {
                session.cx.report(format_args!("flush failed: {}", errno(&e)));
            }
            Err(Failed)
        }
    }
}

pub(super) async fn aio_flush(session: &mut Session<'_>) -> Done {
    session.wait_for_all().await;
    Ok(())
}

pub(super) fn aio_read(session: &mut Session<'_>, command: &IoCommand, args: &Args) -> Done {
    let byte = or_say!(session, args.value(&flags::VERIFY).map(pattern).transpose());
    if args.has(&flags::INVALID) {
        session.put("injecting invalid read request\n");
        return Ok(());
    }
    let Some((offset, lens)) = or_say!(session, ranges(args)) else {
        return session.bad_usage(command, "aio_read");
    };
    let look = vector_look(args, byte, &lens);
    let printer = session.printer();
    let started = Instant::now();
    let op = session.submit(Request::read(offset, vector(session, &lens, READ_FILL)));
    session.start(op, move |completion: Completion| match completion.into_bufs() {
        Ok(bufs) => printer.put(&look.at(offset, &bufs, started).0),
        Err(e) => printer.put(&format!("readv failed: {}\n", errno(&e))),
    });
    Ok(())
}

pub(super) fn aio_write(session: &mut Session<'_>, command: &IoCommand, args: &Args) -> Done {
    let byte = or_say!(session, args.value(&flags::PATTERN).map(pattern).transpose());
    if args.has(&flags::INVALID) {
        session.put("injecting invalid write request\n");
        return Ok(());
    }
    if args.operands.len() < 2 {
        return session.bad_usage(command, "aio_write");
    }
    let zeroes = args.has(&flags::ZEROES);
    if zeroes && args.operands.len() != 2 {
        return session.fail("-z supports only a single length parameter\n");
    }
    let modifiers = or_say!(session, write_flags(args));
    let Some((offset, lens)) = or_say!(session, ranges(args)) else {
        return session.bad_usage(command, "aio_write");
    };
    let len: u64 = lens.iter().sum();
    let request = match zeroes {
        true => Request::write_zeroes(offset, len),
        false => Request::write(offset, vector(session, &lens, byte.unwrap_or(FILL))),
    };
    let (printer, started) = (session.printer(), Instant::now());
    let (quiet, style) = (args.has(&flags::QUIET), style(args));
    let op = session.submit(request.with_flags(modifiers));
    session.start(op, move |completion: Completion| match completion.into_bufs() {
        Ok(bufs) => {
            bufs.recycle();
            if !quiet {
                let took = started.elapsed();
                printer.put(&text(&Figures { verb: "wrote", offset, asked: len, done: len, took }, style));
            }
        }
        Err(e) => printer.put(&format!("aio_write failed: {}\n", errno(&e))),
    });
    Ok(())
}

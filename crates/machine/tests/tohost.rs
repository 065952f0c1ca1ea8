//! Programs that speak to `tohost`, as the public RISC-V tests do: each ending is told apart, in every engine.

#[path = "../examples/riscv-tests/htif.rs"]
mod htif;

use cowbell_machine::Engine;
use htif::{Outcome, Verdict, run};

const TOHOST: u64 = 0x8000_1000;

/// An ELF file with this code at the start of memory, `tohost` and `fromhost` in the next page, and `data` behind them.
fn program(code: &[u32], data: &[u64]) -> Vec<u8> {
    let mut memory: Vec<u8> = code.iter().flat_map(|word| word.to_le_bytes()).collect();
    memory.resize(0x1000, 0);
    memory.extend([0u64; 8].iter().chain(data).flat_map(|word| word.to_le_bytes()));
    let strings = b"\0tohost\0fromhost\0";
    let symbols: Vec<u8> = [(0u32, 0u64), (1, TOHOST), (8, TOHOST + 32)]
        .iter()
        .flat_map(|(name, value)| [u64::from(*name), *value, 0])
        .flat_map(u64::to_le_bytes)
        .collect();
    const HEADERS: u64 = 64 + 56;
    let symbols_at = HEADERS + memory.len() as u64;
    let strings_at = symbols_at + symbols.len() as u64;
    let sections_at = strings_at + strings.len() as u64;
    let mut file = b"\x7fELF\x02\x01".to_vec();
    file.resize(16, 0);
    let half = |file: &mut Vec<u8>, values: &[u16]| file.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    let long = |file: &mut Vec<u8>, values: &[u64]| file.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    half(&mut file, &[2, 243, 1, 0]);
    long(&mut file, &[0x8000_0000, 64, sections_at]);
    half(&mut file, &[0, 0, 64, 56, 1, 64, 2, 0]);
    let len = memory.len() as u64;
    long(&mut file, &[1 | 7 << 32, HEADERS, 0x8000_0000, 0x8000_0000, len, len, 4096]);
    file.extend(memory);
    file.extend(&symbols);
    file.extend(strings);
    long(&mut file, &[2 << 32, 0, 0, symbols_at, symbols.len() as u64, 1, 8, 24]);
    long(&mut file, &[3 << 32, 0, 0, strings_at, strings.len() as u64, 0, 1, 0]);
    file
}

/// `lui t0, 0x80001; slli t0, t0, 32; srli t0, t0, 32`, then what follows: `t0` is `tohost`.
const AT_TOHOST: [u32; 3] = [0x8000_12b7, 0x0202_9293, 0x0202_d293];
/// `ld a0, 64(t0)`: the first word of the data.
const LOAD: u32 = 0x0402_b503;
/// `sd a0, 0(t0)`.
const STORE: u32 = 0x00a2_b023;
/// `j .`
const STAY: u32 = 0x0000_006f;

#[track_caller]
fn check(code: &[u32], data: &[u64], verdict: Verdict, text: &str) {
    let file = program(&[&AT_TOHOST, code].concat(), data);
    let outcomes: Vec<Outcome> =
        [Engine::Blocks, Engine::Plain].into_iter().map(|engine| run(&file, engine, 20_000)).collect();
    assert_eq!((&outcomes[0].verdict, outcomes[0].text.as_str()), (&verdict, text));
    assert_eq!(outcomes[0], outcomes[1], "the engines agree");
}

fn failed(why: &str) -> Verdict {
    Verdict::Failed(why.into())
}

#[test]
fn each_ending_is_told_apart() {
    check(&[LOAD, STORE, STAY], &[1], Verdict::Passed, "");
    check(&[LOAD, STORE, STAY], &[7 << 1 | 1], failed("case 7"), "");
    check(&[STAY], &[], failed("not at its end after 20000 instructions"), "");
    // wfi with nothing that could wake it.
    check(&[0x1050_0073, STAY], &[], failed("waits for an interrupt that cannot come"), "");
    let unknown = "asks its host for 0x2000000000000, which is not served here";
    check(&[LOAD, STORE, STAY], &[2 << 48], Verdict::LeftOut(unknown.into()), "");
}

/// Prints a character, waits until it is taken, asks for `write` and waits for the answer, asks for `exit`.
#[test]
fn a_program_prints_and_exits() {
    let call = TOHOST + 64 + 32;
    let code = [
        LOAD,
        STORE,
        0x0002_b583, // 1: ld a1, 0(t0)
        0xfe05_9ee3, // bnez a1, 1b
        0x0482_b503, // ld a0, 72(t0)
        STORE,
        0x0202_b583, // 2: ld a1, 32(t0)
        0xfe05_8ee3, // beqz a1, 2b
        0x0502_b503, // ld a0, 80(t0)
        STORE,
        STAY,
    ];
    let exit = call + 64;
    let text = u64::from_le_bytes(*b"ello\n\0\0\0");
    let words = |status| {
        vec![
            0x0101 << 48 | u64::from(b'h'),
            call,
            exit,
            0,
            64,
            1,
            call + 32,
            5,
            text,
            0,
            0,
            0,
            93,
            status,
            0,
            0,
        ]
    };
    check(&code, &words(0), Verdict::Passed, "hello\n");
    check(&code, &words(3), failed("exit status 3"), "hello\n");
    check(
        &code[..2],
        &[exit - 64 - 8, 0, 0, 0, 0],
        Verdict::LeftOut("asks its host for system call 0".into()),
        "",
    );
}

#[test]
fn what_is_no_test_is_left_out() {
    let left_out = |file: &[u8]| match run(file, Engine::Plain, 10).verdict {
        Verdict::LeftOut(why) => why,
        other => panic!("{other:?}"),
    };
    assert!(left_out(b"#!/bin/sh").contains("64-bit"));
    let mut stripped = program(&[STAY], &[]);
    stripped[60] = 0;
    assert!(left_out(&stripped).contains("no symbol 'tohost'"));
    let mut elsewhere = program(&[STAY], &[]);
    let at = elsewhere.windows(8).rposition(|bytes| bytes == TOHOST.to_le_bytes()).expect("the symbol");
    elsewhere[at] = 0xff;
    elsewhere[at + 3] = 0;
    assert!(left_out(&elsewhere).contains("is not in memory"));
}

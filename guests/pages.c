/* Sv39, Sv48 and Sv57: translation, permissions, accessed and dirty bits, changes without a fence, superpages. */
#include "guest.h"

static u64 tables[8][512] __attribute__((aligned(4096)));
static u64 data[2][512] __attribute__((aligned(4096)));
static volatile u64 last_cause, last_value;

enum { V = 1, R = 2, W = 4, X = 8, U = 16, A = 64, D = 128, ALL = V | R | W | X | A | D };

/* Notes the trap and skips the instruction, which is four bytes long. */
__attribute__((interrupt("machine"), aligned(4))) void trap_entry(void) {
    last_cause = read_csr(mcause);
    last_value = read_csr(mtval);
    write_csr(mepc, read_csr(mepc) + 4);
}

static u64 entry(const void *target, u64 flags) { return (u64)target >> 12 << 10 | flags; }

/* Loads and stores with the supervisor's eyes: machine mode with MPRV. A return from a trap leaves MPP at user. */
static void look_as_supervisor(void) {
    clear_csr(mstatus, 3 << 11);
    set_csr(mstatus, 1 << 11);
    last_cause = 0;
}

static u64 load(u64 va) {
    u64 value = 0, mprv = 1 << 17;
    look_as_supervisor();
    asm volatile(".option push\n.option norvc\ncsrs mstatus, %2\nld %0, 0(%1)\ncsrc mstatus, %2\n.option pop"
                 : "+r"(value) : "r"(va), "r"(mprv) : "memory");
    return value;
}

static void store(u64 va, u64 value) {
    u64 mprv = 1 << 17;
    look_as_supervisor();
    asm volatile(".option push\n.option norvc\ncsrs mstatus, %2\nsd %0, 0(%1)\ncsrc mstatus, %2\n.option pop"
                 :: "r"(value), "r"(va), "r"(mprv) : "memory");
}

static void check_mode(int mode, int levels) {
    const u64 va = 0x40201000;
    for (int level = 0; level < levels; level++)
        for (int i = 0; i < 512; i++) tables[level][i] = 0;
    for (int level = levels - 1; level > 0; level--)
        tables[level][va >> (12 + 9 * level) & 511] = entry(tables[level - 1], V);
    u64 *leaf = &tables[0][va >> 12 & 511];
    *leaf = entry(data[0], ALL);
    data[0][1] = 0x1111;
    data[1][1] = 0x2222;
    write_csr(satp, (u64)mode << 60 | (u64)tables[levels - 1] >> 12);
    if (read_csr(satp) >> 60 != (u64)mode) { put_line("absent mode", mode); return; }
    asm volatile("sfence.vma");
    expect("load", load(va + 8), 0x1111);
    store(va + 8, 0x3333);
    expect("store", data[0][1], 0x3333);
    *leaf = entry(data[1], ALL);
    asm volatile("sfence.vma");
    expect("other page", load(va + 8), 0x2222);

    *leaf = entry(data[1], V | R | A);
    asm volatile("sfence.vma");
    expect("read-only load", load(va + 8), 0x2222);
    store(va + 8, 1);
    expect("read-only store", last_cause, 15);
    expect("its address", last_value, va + 8);
    *leaf = entry(data[1], V | R | W | A);
    asm volatile("sfence.vma");
    store(va + 8, 1);
    expect("clean page", last_cause, 15);
    *leaf = entry(data[1], V | R | W | D);
    asm volatile("sfence.vma");
    load(va + 8);
    expect("page not accessed", last_cause, 13);
    *leaf = entry(data[1], ALL | U);
    asm volatile("sfence.vma");
    load(va + 8);
    expect("user page", last_cause, 13);
    set_csr(mstatus, 1 << 18);
    expect("user page with SUM", load(va + 8), 0x2222);
    clear_csr(mstatus, 1 << 18);
    *leaf = entry(data[1], V | X | A);
    asm volatile("sfence.vma");
    load(va + 8);
    expect("execute-only", last_cause, 13);
    set_csr(mstatus, 1 << 19);
    expect("execute-only with MXR", load(va + 8), 0x2222);
    clear_csr(mstatus, 1 << 19);
    load(va + 0x1000);
    expect("hole", last_cause, 13);
    load(1ul << 63);
    expect("not canonical", last_cause, 13);

    /* A superpage, and a misaligned one. */
    u64 base = (u64)data & -0x200000ul;
    tables[1][va >> 21 & 511] = entry((void *)base, ALL);
    asm volatile("sfence.vma");
    expect("superpage", load((va & -0x200000ul) + ((u64)&data[1][1] - base)), 0x2222);
    tables[1][va >> 21 & 511] = entry((void *)(base + 4096), ALL);
    asm volatile("sfence.vma");
    load(va);
    expect("misaligned superpage", last_cause, 13);
    put_line("mode", mode);
}

int main(void) {
    write_csr(pmpaddr0, -1ul);
    write_csr(pmpcfg0, 0x1f);
    check_mode(8, 3);
    check_mode(9, 4);
    check_mode(10, 5);
    return 0;
}

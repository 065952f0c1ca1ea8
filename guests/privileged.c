/* What each mode may do and what a trap tells: counters, the supervisor's timer, cache blocks, invalidation, memory
   protection against a model of it, accesses across pages, reserved bits of page tables. */
#include "guest.h"

enum { USER, SUPERVISOR, MACHINE = 3 };
enum { V = 1, R = 2, W = 4, X = 8, U = 16, A = 64, D = 128, ALL = V | R | W | X | A | D };
enum { ILLEGAL = 2, LOAD_ACCESS = 5, STORE_ACCESS = 7, FETCH_PAGE = 12, LOAD_PAGE = 13, STORE_PAGE = 15, FETCH_ACCESS = 1 };

/* What `run_stub` saw: a0, mcause, mtval, mepc. */
u64 seen[4];
static u32 stub[2] __attribute__((aligned(64)));

/* Runs the instructions at `code` in the mode whose bits of mstatus are given, until the first trap. They change no register but
   a0, so that the trap can return for them. */
void run_stub(u64 mpp, const void *code, u64 a0, u64 a1);
asm(".text\n.align 2\n.globl run_stub\nrun_stub:\n"
    "li t0, 0x1800\ncsrc mstatus, t0\ncsrs mstatus, a0\ncsrw mepc, a1\n"
    "la t0, 1f\ncsrw mtvec, t0\nmv a0, a2\nmv a1, a3\nmret\n"
    ".align 2\n1: la t0, seen\nsd a0, 0(t0)\ncsrr t1, mcause\nsd t1, 8(t0)\ncsrr t1, mtval\nsd t1, 16(t0)\n"
    "csrr t1, mepc\nsd t1, 24(t0)\nla t0, trap_entry\ncsrw mtvec, t0\nret\n");

/* The cause of the trap that this instruction takes in this mode, or 0. */
static u64 attempt(int mode, u32 instruction, u64 a0, u64 a1) {
    stub[0] = instruction;
    stub[1] = 0x73;
    asm volatile("fence.i");
    run_stub((u64)mode << 11, stub, a0, a1);
    return seen[1] == 8u + mode && seen[3] == (u64)&stub[1] ? 0 : seen[1];
}

static u32 csr_read(u32 number) { return number << 20 | 2 << 12 | 10 << 7 | 0x73; }
static u32 csr_write(u32 number) { return number << 20 | 10 << 15 | 1 << 12 | 0x73; }

/* Each counter is seen from below when all above allow it, and an illegal instruction tells its bits. */
static void counters(void) {
    u64 hash = 0;
    for (u64 allow = 0; allow < 64; allow++) {
        write_csr(mcounteren, allow & 7);
        write_csr(scounteren, allow >> 3);
        for (int counter = 0; counter < 3; counter++) {
            u64 machine = allow >> counter & 1, supervisor = allow >> (3 + counter) & 1;
            u32 read = csr_read(0xc00 + counter);
            expect("counter in M", attempt(MACHINE, read, 0, 0), 0);
            expect("counter in S", attempt(SUPERVISOR, read, 0, 0), machine ? 0 : ILLEGAL);
            expect("counter in U", attempt(USER, read, 7, 0), machine && supervisor ? 0 : ILLEGAL);
            if (!(machine && supervisor)) {
                expect("bits of the refused", seen[2], read);
                expect("register of the refused", seen[0], 7);
            }
            hash = mix(hash, seen[1]);
        }
    }
    expect("counter is read-only", attempt(MACHINE, csr_write(0xc00), 0, 0), ILLEGAL);
    write_csr(mcounteren, 7);
    write_csr(scounteren, 7);
    put_line("counters", hash);
}

#define MTIME ((volatile u64 *)0x200bff8)
#define STIP (1ul << 5)

static void supervisor_timer(void) {
    write_csr(mcounteren, 7);
    clear_csr(menvcfg, 1ul << 63);
    expect("stimecmp without STCE", attempt(SUPERVISOR, csr_read(0x14d), 0, 0), ILLEGAL);
    expect("stimecmp without STCE in M", attempt(MACHINE, csr_read(0x14d), 0, 0), 0);
    set_csr(mip, STIP);
    expect("STIP is written without STCE", read_csr(mip) & STIP, STIP);
    clear_csr(mip, STIP);
    set_csr(menvcfg, 1ul << 63);
    write_csr(mcounteren, 5);
    expect("stimecmp without TM", attempt(SUPERVISOR, csr_read(0x14d), 0, 0), ILLEGAL);
    write_csr(mcounteren, 7);
    expect("stimecmp in S", attempt(SUPERVISOR, csr_write(0x14d), -1ul, 0), 0);
    expect("stimecmp in U", attempt(USER, csr_read(0x14d), 0, 0), ILLEGAL);
    expect("stimecmp as written", read_csr(0x14d), -1ul);
    expect("not due", read_csr(mip) & STIP, 0);
    set_csr(mip, STIP);
    expect("STIP is the timer's", read_csr(mip) & STIP, 0);
    write_csr(0x14d, *MTIME);
    expect("due", read_csr(mip) & STIP, STIP);
    clear_csr(mip, STIP);
    expect("STIP stays", read_csr(mip) & STIP, STIP);
    write_csr(mideleg, STIP);
    set_csr(mie, STIP);
    expect("sip in S", attempt(SUPERVISOR, csr_read(0x144), 0, 0), 0);
    expect("STIP in sip", seen[0], STIP);
    write_csr(0x14d, -1ul);
    expect("over", read_csr(mip) & STIP, 0);
    clear_csr(mie, STIP);
    write_csr(mideleg, 0);
    put_line("timer", 1);
}

/* cbo.inval, cbo.clean, cbo.flush, cbo.zero of the block at a0. */
static u32 cbo(u32 which) { return which << 20 | 10 << 15 | 2 << 12 | 0xf; }

static unsigned char block[192] __attribute__((aligned(64)));

static void cache_blocks(void) {
    static const u64 enable[4] = {3 << 4, 1 << 6, 1 << 6, 1 << 7};
    u64 at = (u64)&block[100];
    for (u32 which = 0; which < 4; which++) {
        if (which == 3) which = 4;
        u64 bit = enable[which == 4 ? 3 : which];
        for (int machine = 0; machine < 2; machine++) {
            for (int supervisor = 0; supervisor < 2; supervisor++) {
                write_csr(menvcfg, machine ? bit : 0);
                write_csr(senvcfg, supervisor ? bit : 0);
                expect("cbo in M", attempt(MACHINE, cbo(which), at, 0), 0);
                expect("cbo in S", attempt(SUPERVISOR, cbo(which), at, 0), machine ? 0 : ILLEGAL);
                expect("cbo in U", attempt(USER, cbo(which), at, 0), machine && supervisor ? 0 : ILLEGAL);
            }
        }
    }
    for (int i = 0; i < 192; i++) block[i] = 0xa5;
    expect("cbo.zero", attempt(USER, cbo(4), at, 0), 0);
    for (int i = 0; i < 192; i++) expect("zeroed block", block[i], i / 64 == 1 ? 0 : 0xa5);
    write_csr(menvcfg, -1ul);
    put_line("envcfg", read_csr(menvcfg) & 0xf1);
    write_csr(menvcfg, 0);
}

/* sinval.vma x0, x0 and its two fences; sfence.vma; satp. */
static void invalidation(void) {
    static const u32 codes[] = {0x16000073, 0x18000073, 0x18100073, 0x12000073};
    for (int i = 0; i < 4; i++) {
        int obeys_tvm = i == 0 || i == 3;
        clear_csr(mstatus, 1 << 20);
        expect("fence in M", attempt(MACHINE, codes[i], 0, 0), 0);
        expect("fence in S", attempt(SUPERVISOR, codes[i], 0, 0), 0);
        expect("fence in U", attempt(USER, codes[i], 0, 0), ILLEGAL);
        set_csr(mstatus, 1 << 20);
        expect("fence with TVM", attempt(SUPERVISOR, codes[i], 0, 0), obeys_tvm ? ILLEGAL : 0);
        expect("fence with TVM in M", attempt(MACHINE, codes[i], 0, 0), 0);
    }
    expect("satp with TVM", attempt(SUPERVISOR, csr_read(0x180), 0, 0), ILLEGAL);
    clear_csr(mstatus, 1 << 20);
    expect("satp without TVM", attempt(SUPERVISOR, csr_read(0x180), 0, 0), 0);
    put_line("invalidation", 1);
}

#define LOAD_INTO_A0(width) ((u32)(width) << 12 | 10 << 15 | 10 << 7 | 3)
#define STORE_A1(width) (11u << 20 | 10 << 15 | (width) << 12 | 0x23)

static u64 page[2][512] __attribute__((aligned(8192)));

/* What two entries say about an access (1 to read, 2 to write, 0 for machine mode, which only partial
   matches refuse), as the specification words it; entry 15 allows all else. */
static int allowed(u64 address, u64 size, int right, const u64 *from, const u64 *to, const u64 *config) {
    for (int i = 0; i < 2; i++) {
        if (from[i] >= to[i] || address + size <= from[i] || to[i] <= address) continue;
        return from[i] <= address && address + size <= to[i] && (!right || config[i] & right);
    }
    return 1;
}

/* Random pairs of entries over a few words at the edge of two pages; every load and store near by. */
static void protection(void) {
    u64 seed = 17, hash = 0, middle = (u64)page[1];
    write_csr(pmpaddr15, -1ul);
    write_csr(pmpcfg2, 0x1ful << 56);
    for (int round = 0; round < 300; round++) {
        u64 from[2], to[2], config[2], registers[4], cfg = 0;
        for (int i = 0; i < 2; i++) {
            u64 r = next_random(&seed);
            config[i] = r & 7;
            if ((config[i] & 3) == 2) config[i] ^= 2;
            u64 at = middle - 32 + (r >> 8 & 15) * 4, log = 3 + (r >> 16 & 3);
            switch (r >> 24 & 3) {
            case 0: /* off */
                from[i] = to[i] = 0;
                registers[2 * i] = registers[2 * i + 1] = at >> 2;
                break;
            case 1: /* from the register before */
                to[i] = at + (r >> 32 & 7) * 4;
                from[i] = at;
                registers[2 * i] = at >> 2;
                registers[2 * i + 1] = to[i] >> 2;
                cfg |= (config[i] | 8) << (16 * i + 8);
                break;
            case 2: /* one word */
                from[i] = at;
                to[i] = at + 4;
                registers[2 * i] = 0;
                registers[2 * i + 1] = at >> 2;
                cfg |= (config[i] | 16) << (16 * i + 8);
                break;
            default: /* a power of two */
                from[i] = at & -(1ul << log);
                to[i] = from[i] + (1ul << log);
                registers[2 * i] = 0;
                registers[2 * i + 1] = from[i] >> 2 | ((1ul << (log - 3)) - 1);
                cfg |= (config[i] | 24) << (16 * i + 8);
            }
        }
        write_csr(pmpaddr0, registers[0]);
        write_csr(pmpaddr1, registers[1]);
        write_csr(pmpaddr2, registers[2]);
        write_csr(pmpaddr3, registers[3]);
        write_csr(pmpcfg0, cfg);
        asm volatile("sfence.vma");
        for (int probe = 0; probe < 24; probe++) {
            u64 r = next_random(&seed);
            int width = r & 3, mode = r >> 2 & 1;
            u64 size = 1ul << width, at = middle - 40 + (r >> 8 & 15) * 5;
            at &= -size;
            expect("protected load", attempt(mode, LOAD_INTO_A0(width), at, 0),
                   allowed(at, size, 1, from, to, config) ? 0 : LOAD_ACCESS);
            if (seen[1] == LOAD_ACCESS) expect("its address", seen[2], at);
            expect("protected store", attempt(mode, STORE_A1(width), at, r),
                   allowed(at, size, 2, from, to, config) ? 0 : STORE_ACCESS);
            expect("load in M", attempt(MACHINE, LOAD_INTO_A0(width), at, 0),
                   allowed(at, size, 0, from, to, config) ? 0 : LOAD_ACCESS);
            hash = mix(mix(hash, seen[0]), seen[1]);
        }
    }
    write_csr(pmpcfg0, 0);
    put_line("protection", hash);
}

/* A locked entry binds machine mode and cannot be changed; what it begins at cannot either. */
static void locked(void) {
    u64 at = (u64)page[0];
    write_csr(pmpaddr8, at >> 2);
    write_csr(pmpaddr9, (at + 16) >> 2);
    set_csr(pmpcfg2, 0x89ul << 8);
    expect("locked load", attempt(MACHINE, LOAD_INTO_A0(3), at + 8, 0), 0);
    expect("locked store", attempt(MACHINE, STORE_A1(3), at + 8, 0), STORE_ACCESS);
    expect("store behind it", attempt(MACHINE, STORE_A1(3), at + 16, 0), 0);
    expect("store half into it", attempt(MACHINE, STORE_A1(3), at - 4 + 16, 0), STORE_ACCESS);
    write_csr(pmpaddr8, 0);
    write_csr(pmpaddr9, 0);
    clear_csr(pmpcfg2, 0xfful << 8);
    expect("its lower end", read_csr(pmpaddr8), at >> 2);
    expect("its upper end", read_csr(pmpaddr9), (at + 16) >> 2);
    expect("its configuration", read_csr(pmpcfg2) >> 8 & 0xff, 0x89);
    put_line("locked", 1);
}

static u64 tables[6][512] __attribute__((aligned(4096)));
static const u64 va = 0x40201000;

static u64 entry(const void *target, u64 flags) { return (u64)target >> 12 << 10 | flags; }

/* Two pages at `va`, the program where it is; the leaf table. */
static u64 *map(int levels) {
    for (int level = 0; level < 6; level++)
        for (int i = 0; i < 512; i++) tables[level][i] = 0;
    for (int level = levels - 1; level > 2; level--) tables[level][0] = entry(tables[level - 1], V);
    tables[2][2] = entry((void *)0x80000000, ALL);
    tables[2][1] = entry(tables[1], V);
    tables[1][1] = entry(tables[0], V);
    tables[0][1] = entry(page[0], ALL);
    tables[0][2] = entry(page[1], ALL);
    write_csr(satp, (u64)(levels + 5) << 60 | (u64)tables[levels - 1] >> 12);
    asm volatile("sfence.vma");
    return tables[0];
}

static u64 load_page(void) {
    asm volatile("sfence.vma");
    return attempt(SUPERVISOR, LOAD_INTO_A0(3), va + 8, 0);
}

/* Loads and stores over the edge of two pages, wherever they lie, and what each fault tells and leaves. */
static void across_pages(int levels) {
    u64 *leaf = map(levels), hash = 0;
    for (int swapped = 0; swapped < 2; swapped++) {
        leaf[1] = entry(page[swapped], ALL);
        leaf[2] = entry(page[!swapped], ALL);
        asm volatile("sfence.vma");
        for (int width = 1; width < 4; width++) {
            for (u64 before = 1; before < 1ul << width; before++) {
                u64 at = va + 4096 - before, value = 0x8877665544332211;
                page[swapped][511] = page[!swapped][0] = 0;
                expect("store across", attempt(SUPERVISOR, STORE_A1(width), at, value), 0);
                u64 bits = 8 * before, all = 8ul << width, mask = all == 64 ? -1ul : (1ul << all) - 1;
                expect("its first part", page[swapped][511], (value & mask) << (64 - bits));
                expect("its second part", page[!swapped][0], (value & mask) >> bits);
                expect("load across", attempt(SUPERVISOR, LOAD_INTO_A0(width), at, 0), 0);
                u64 extended = (u64)((int64_t)(value << (64 - all)) >> (64 - all));
                expect("its value", seen[0], extended);
                hash = mix(hash, seen[0]);
            }
        }
    }
    u64 at = va + 4093;
    page[1][511] = page[0][0] = 0x55;
    leaf[2] = entry(page[0], V | R | A);
    asm volatile("sfence.vma");
    expect("store into a read-only second page", attempt(SUPERVISOR, STORE_A1(3), at, -1ul), STORE_PAGE);
    expect("where it faults", seen[2], va + 4096);
    expect("nothing is stored", page[1][511], 0x55);
    expect("load from it", attempt(SUPERVISOR, LOAD_INTO_A0(3), at, 0), 0);
    leaf[1] = 0;
    asm volatile("sfence.vma");
    expect("store into an absent first page", attempt(SUPERVISOR, STORE_A1(3), at, -1ul), STORE_PAGE);
    expect("where that faults", seen[2], at);
    expect("load from it", attempt(SUPERVISOR, LOAD_INTO_A0(3), at, 0), LOAD_PAGE);
    leaf[1] = entry(page[1], ALL);
    leaf[2] = 0;
    asm volatile("sfence.vma");
    expect("load from an absent second page", attempt(SUPERVISOR, LOAD_INTO_A0(3), at, 0), LOAD_PAGE);
    expect("where it faults", seen[2], va + 4096);
    put_line("across", hash);
}

/* Reserved bits and combinations, in leaves and in pointers to tables. */
static void reserved(int levels) {
    u64 *leaf = map(levels), good = leaf[1];
    page[0][1] = 0x1234;
    expect("good page", load_page(), 0);
    expect("its content", seen[0], 0x1234);
    for (int bit = 54; bit < 64; bit++) {
        leaf[1] = good | 1ul << bit;
        expect("reserved bit of a leaf", load_page(), LOAD_PAGE);
        leaf[1] = good;
        tables[1][1] |= 1ul << bit;
        expect("reserved bit of a pointer", load_page(), LOAD_PAGE);
        tables[1][1] &= ~(1ul << bit);
    }
    for (int bit = 4; bit < 10; bit++) {
        tables[1][1] |= 1ul << bit;
        int ignored = bit == 5 || bit > 7;
        expect("flag of a pointer", load_page(), ignored ? 0 : LOAD_PAGE);
        tables[1][1] &= ~(1ul << bit);
    }
    for (u64 flags = 0; flags < 8; flags++) {
        u64 bits = flags << 1;
        leaf[1] = (good & -1024ul) | bits | A | D | V;
        int readable = (bits & R) != 0, pointer = !bits, odd = (bits & (R | W)) == W;
        expect("rights", load_page(), readable && !pointer && !odd ? 0 : LOAD_PAGE);
        expect("to fetch", (run_stub(1 << 11, (void *)va, 0, 0), seen[1]),
               (bits & X) && !odd ? ILLEGAL : FETCH_PAGE);
    }
    leaf[1] = good & ~(u64)A;
    expect("not accessed", load_page(), LOAD_PAGE);
    expect("stays so", leaf[1], good & ~(u64)A);
    leaf[1] = good & ~(u64)D;
    expect("clean is read", load_page(), 0);
    expect("clean is not written", attempt(SUPERVISOR, STORE_A1(3), va, 0), STORE_PAGE);
    expect("and stays clean", leaf[1], good & ~(u64)D);
    write_csr(menvcfg, 1ul << 61 | 1ul << 62);
    expect("no hardware update, no memory types", read_csr(menvcfg), 0);
    leaf[1] = good;

    /* The sign of the address, one bit below and above. */
    u64 top = 1ul << (9 * levels + 11);
    expect("just not canonical", attempt(SUPERVISOR, LOAD_INTO_A0(3), va | top, 0), LOAD_PAGE);
    expect("its address", seen[2], va | top);
    expect("too high", attempt(SUPERVISOR, LOAD_INTO_A0(3), va | top << 1, 0), LOAD_PAGE);
    u64 high = -top | va;
    tables[levels - 1][high >> (9 * levels + 3) & 511] = tables[levels - 1][va >> (9 * levels + 3) & 511];
    asm volatile("sfence.vma");
    expect("negative", attempt(SUPERVISOR, LOAD_INTO_A0(3), high + 8, 0), 0);
    expect("its content", seen[0], 0x1234);
    put_line("reserved", levels);
}

/* A table where the protection forbids it: an access fault of the kind of the access. */
static void protected_tables(void) {
    map(3);
    write_csr(pmpaddr0, (u64)tables[0] >> 2 | 511);
    write_csr(pmpcfg0, 0x18);
    expect("load by it", load_page(), LOAD_ACCESS);
    expect("store by it", attempt(SUPERVISOR, STORE_A1(3), va, 0), STORE_ACCESS);
    expect("fetch by it", (run_stub(1 << 11, (void *)va, 0, 0), seen[1]), FETCH_ACCESS);
    expect("its address", seen[2], va);
    write_csr(pmpcfg0, 0x19);
    expect("readable is enough", load_page(), 0);
    write_csr(pmpcfg0, 0);
    tables[1][1] = entry((void *)0, V);
    expect("table outside of memory", load_page(), LOAD_ACCESS);
    put_line("tables", 1);
}

int main(void) {
    write_csr(pmpaddr15, -1ul);
    write_csr(pmpcfg2, 0x1ful << 56);
    counters();
    supervisor_timer();
    cache_blocks();
    invalidation();
    protection();
    for (int levels = 3; levels < 6; levels++) {
        across_pages(levels);
        reserved(levels);
    }
    protected_tables();
    write_csr(satp, 0);
    locked();
    return 0;
}

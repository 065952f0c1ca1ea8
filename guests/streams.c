/* Random instruction streams, legal and not: four instructions at a time from random registers, and a checksum of
   registers, memory, flags and traps over many of them, to be compared with what another implementation prints.

   Jumps, system instructions and cache operations are left out. Accesses go through registers that point into a buffer,
   which no other instruction writes. */
#include "guest.h"

#define STREAMS 4000
#define LENGTH 4

struct context {
    u64 x[32], f[32], fcsr;
    u64 cause, epc, value;
    u64 saved[16];
};

static struct context context __attribute__((used));
static unsigned char buffer[8192] __attribute__((aligned(4096)));
static u64 seed;

/* Loads all registers, runs what stands at `code`, and comes back by the trap that ends it. */
void run_stream(void);
extern unsigned short code[];

asm(".text\n.align 3\n.globl run_stream\nrun_stream:\n"
    "la t0, context\n"
    "sd ra, 544(t0)\nsd sp, 552(t0)\nsd gp, 560(t0)\nsd tp, 568(t0)\n"
    "sd s0, 576(t0)\nsd s1, 584(t0)\nsd s2, 592(t0)\nsd s3, 600(t0)\nsd s4, 608(t0)\nsd s5, 616(t0)\n"
    "sd s6, 624(t0)\nsd s7, 632(t0)\nsd s8, 640(t0)\nsd s9, 648(t0)\nsd s10, 656(t0)\nsd s11, 664(t0)\n"
    "csrw mscratch, t0\nmv x31, t0\n"
    "ld t1, 512(x31)\ncsrw fcsr, t1\n"
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
    "fld f\\n, 256+8*\\n(x31)\n.endr\n"
    ".irp n,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
    "ld x\\n, 8*\\n(x31)\n.endr\n"
    "j code\n"
    ".align 2\n.globl trap_entry\ntrap_entry:\n"
    "csrrw x31, mscratch, x31\n"
    ".irp n,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30\n"
    "sd x\\n, 8*\\n(x31)\n.endr\n"
    "csrr t0, mscratch\nsd t0, 248(x31)\n"
    ".irp n,0,1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23,24,25,26,27,28,29,30,31\n"
    "fsd f\\n, 256+8*\\n(x31)\n.endr\n"
    "csrr t0, fcsr\nsd t0, 512(x31)\n"
    "csrr t0, mcause\nsd t0, 520(x31)\ncsrr t0, mepc\nsd t0, 528(x31)\ncsrr t0, mtval\nsd t0, 536(x31)\n"
    "mv t0, x31\n"
    "ld ra, 544(t0)\nld sp, 552(t0)\nld gp, 560(t0)\nld tp, 568(t0)\n"
    "ld s0, 576(t0)\nld s1, 584(t0)\nld s2, 592(t0)\nld s3, 600(t0)\nld s4, 608(t0)\nld s5, 616(t0)\n"
    "ld s6, 624(t0)\nld s7, 632(t0)\nld s8, 640(t0)\nld s9, 648(t0)\nld s10, 656(t0)\nld s11, 664(t0)\n"
    "csrw mepc, ra\nli t1, 0x1800\ncsrs mstatus, t1\nmret\n"
    ".section .data\n.align 3\n.globl code\ncode: .space 64\n.text\n");

/* sp, s0, s1, a0, a1: the pointers. */
static int is_pointer(u32 r) { return r == 2 || (r >= 8 && r <= 11); }

/* Makes a random compressed instruction harmless, or gives 0. */
static u32 compressed(u32 bits) {
    u32 quadrant = bits & 3, group = bits >> 13 & 7, rd = bits >> 7 & 31;
    switch (quadrant) {
    case 0:
        if (group != 0) bits &= ~(4u << 7);  /* The base is one of s0 to a1. */
        return group < 4 ? bits | 4 << 2 : bits; /* What is written is one of a2 to a5. */
    case 1:
        if (group == 5 || group >= 6) return 0;
        if (group == 4) return bits | 4 << 7;
        return is_pointer(rd) ? 0 : bits;
    default:
        if (group == 4 && (bits >> 2 & 31) == 0) return 0;
        return group < 5 && group != 1 && is_pointer(rd) ? 0 : bits;
    }
}

/* The same for a full one. */
static u32 full(u32 bits) {
    u32 opcode = bits >> 2 & 31, rd = bits >> 7 & 31;
    bits |= 3;
    switch (opcode) {
    case 0x00: case 0x01: case 0x08: case 0x09: case 0x0b: { /* Loads, stores, atomics. */
        bits = (bits & ~(31u << 15)) | (8 + (bits >> 15 & 3)) << 15;
        if ((opcode == 0 || opcode == 0x0b) && is_pointer(rd)) return 0;
        return bits;
    }
    case 0x03: return (bits >> 12 & 7) == 2 ? 0 : bits; /* Fences, but no cache blocks. */
    case 0x18: case 0x19: case 0x1b: case 0x1c: return 0; /* Jumps, and the system. */
    case 0x14: return is_pointer(rd) ? 0 : bits; /* Floating point may write integers. */
    case 0x10: case 0x11: case 0x12: case 0x13: return bits;
    case 0x15: return 0; /* Vectors: their absence is told otherwise in some versions. */
    default: return is_pointer(rd) ? 0 : bits;
    }
}

/* Instructions that the version of the reference gets wrong. */
static int is_left_out(u32 bits) {
    return (bits & 0xfff0707f) == 0x6010101b /* ctzw: it counts into the upper half. */
        || (bits & 0xf800007f) == 0x1800002f; /* sc: without a reservation it does not look at the address. */
}

/* Mostly near something that exists: major opcodes and function fields as they are common. */
static u32 any_instruction(void) {
    static const unsigned char opcodes[] = {0x33, 0x3b, 0x13, 0x1b, 0x03, 0x23, 0x53, 0x07, 0x27, 0x2f, 0x43, 0x47, 0x4b, 0x4f,
                                            0x37, 0x17};
    static const unsigned char functions[] = {0, 1, 0x20, 5, 4, 0x10, 0x14, 0x24, 0x30, 0x34, 0x60, 0x61, 0x68, 0x69, 0x70, 0x71};
    u64 r = next_random(&seed);
    u32 bits = r;
    if ((r >> 40 & 31) == 0) return bits | 3;
    bits = (bits & ~0x7fu) | opcodes[r >> 32 & 15];
    if ((r >> 43 & 3) != 0) bits = (bits & ~(0x7fu << 25)) | (u32)functions[r >> 45 & 15] << 25;
    /* Offsets that stay near, and not always aligned. */
    return bits;
}

static int place(unsigned short *at, int kind) {
    for (;;) {
        u64 r = next_random(&seed);
        if (kind == 1 || (kind == 2 && (r & 1))) {
            u32 bits = r >> 8 & 0xffff;
            if ((bits & 3) == 3) continue;
            bits = compressed(bits);
            if (!bits && (r >> 30 & 63)) continue;
            at[0] = bits;
            return 1;
        }
        u32 bits = full(any_instruction());
        if (!bits || is_left_out(bits)) continue;
        at[0] = bits;
        at[1] = bits >> 16;
        return 2;
    }
}

static u64 stream(int kind, u64 hash) {
    unsigned short *at = code;
    for (int i = 0; i < LENGTH; i++) at += place(at, kind);
    at[0] = 0x9002; /* c.ebreak */
    asm volatile("fence.i" ::: "memory");
    for (int i = 1; i < 32; i++) {
        u64 r = next_random(&seed);
        context.x[i] = r & 1 ? next_random(&seed) >> (r >> 8 & 63) : (u64)((long)(r << 40) >> 60);
        context.f[i] = r & 2 ? next_random(&seed) : -1ul << 32 | next_random(&seed);
    }
    context.x[2] = (u64)buffer + 2048;
    for (int i = 8; i < 12; i++) context.x[i] = (u64)buffer + 2048 + (next_random(&seed) & 2047 & (i & 1 ? -1ul : ~7ul));
    context.fcsr = next_random(&seed) & 0xff;
    run_stream();
    for (int i = 1; i < 32; i++) hash = mix(mix(hash, context.x[i]), context.f[i]);
    /* A misaligned atomic operation is a store's fault (6); the reference takes it for a load's (4) while it runs one
       hart. And a breakpoint may tell its address or nothing. */
    hash = mix(mix(hash, context.fcsr), context.cause == 4 ? 6 : context.cause);
    hash = mix(mix(hash, context.epc - (u64)code), context.cause == 3 ? 0 : context.value);
    return hash;
}

int main(void) {
    static const char *const names[] = {"full", "compressed", "mixed"};
    for (int part = 0; part < 24; part++) {
        u64 hash = 0, traps = 0;
        seed = part;
        for (int i = 0; i < STREAMS; i++) {
            hash = stream(part % 3, hash);
            traps += context.cause != 3;
        }
        for (unsigned i = 0; i < sizeof buffer; i += 8) hash = mix(hash, *(u64 *)(buffer + i));
        put_line(names[part % 3], hash);
        put_line("trapped", traps);
    }
    return 0;
}

/* Every computing instruction over random and edge operands: a checksum of results and flags for each, to be
   compared with what another implementation prints. */
#include "guest.h"

#define ROUNDS 1500

static const u64 integers[] = {0, 1, -1ul, 1ul << 63, ~(1ul << 63), 0x80000000, 0x7fffffff, 0xffffffff, 0xffffffff80000000,
                               63, 64, 31, 32, 0x8000, 0xff, 0x5555555555555555};
static const u64 doubles[] = {0, 1ul << 63, 0x3ff0000000000000, 0xbff0000000000000, 0x7ff0000000000000, 0xfff0000000000000,
                              0x7ff8000000000000, 0x7ff0000000000001, 1, 0x000fffffffffffff, 0x0010000000000000,
                              0x7fefffffffffffff, 0x43e0000000000000, 0xc3e0000000000000, 0x41dfffffffc00000, 0x3fe0000000000000};
static const u32 singles[] = {0, 1u << 31, 0x3f800000, 0xbf800000, 0x7f800000, 0xff800000, 0x7fc00000, 0x7f800001, 1, 0x007fffff,
                              0x00800000, 0x7f7fffff, 0x5f000000, 0xdf000000, 0x4effffff, 0x3f000000};

static u64 seed;

static u64 integer(void) {
    u64 r = next_random(&seed);
    return r & 3 ? next_random(&seed) >> (r >> 8 & 63) : integers[r >> 8 & 15];
}

/* Now and then a number near another's exponent, so that sums cancel and roundings tie. */
static u64 as_double(void) {
    u64 r = next_random(&seed), bits = next_random(&seed);
    switch (r & 3) {
    case 0: return doubles[r >> 8 & 15];
    case 1: return bits;
    case 2: return (bits & ~(0x7fful << 52)) | (1013 + (r >> 8 & 31)) << 52;
    default: return (bits & ~(0x7fful << 52) & -1ul << (r >> 16 & 63)) | (1013 + (r >> 8 & 31)) << 52;
    }
}

static u64 as_single(void) {
    u64 r = next_random(&seed), bits = next_random(&seed) & 0xffffffff;
    u64 boxed = -1ul << 32;
    switch (r & 7) {
    case 0: case 1: return boxed | singles[r >> 8 & 15];
    case 2: return next_random(&seed);
    case 3: case 4: return boxed | (bits & ~(0xffu << 23)) | (117 + (r >> 8 & 31)) << 23;
    case 5: return boxed | (bits & ~(0xffu << 23) & -1u << (r >> 16 & 31)) | (117 + (r >> 8 & 31)) << 23;
    default: return boxed | bits;
    }
}

#define EACH(name, ...)                                    \
    do {                                                   \
        u64 hash = 0;                                      \
        seed = sizeof(name);                               \
        for (int round = 0; round < ROUNDS; round++) __VA_ARGS__  \
        put_line(name, hash);                              \
    } while (0)

#define RR(op) EACH(op, { u64 x = integer(), y = integer(), z; asm volatile(op " %0, %1, %2" : "=r"(z) : "r"(x), "r"(y)); hash = mix(hash, z); })
#define R1(op) EACH(op, { u64 x = integer(), z; asm volatile(op " %0, %1" : "=r"(z) : "r"(x)); hash = mix(hash, z); })
#define RI(op, i) EACH(op, { u64 x = integer(), z; asm volatile(op " %0, %1, " #i : "=r"(z) : "r"(x)); hash = mix(hash, z); })

#define FLAGS hash = mix(hash, read_csr(fcsr)); write_csr(fflags, round & 1)
#define MODE write_csr(frm, round % 5)
#define IN(reg, value) asm volatile("fmv.d.x " reg ", %0" ::"r"(value))
#define OUT(reg) ({ u64 o_; asm volatile("fmv.x.d %0, " reg : "=r"(o_)); hash = mix(hash, o_); })
#define FF(op, src) EACH(op, { MODE; IN("ft0", src()); IN("ft1", src()); asm volatile(op " ft2, ft0, ft1"); OUT("ft2"); FLAGS; })
#define F1(op, src) EACH(op, { MODE; IN("ft0", src()); asm volatile(op " ft2, ft0"); OUT("ft2"); FLAGS; })
#define F4(op, src) EACH(op, { MODE; IN("ft0", src()); IN("ft1", src()); IN("ft3", src()); asm volatile(op " ft2, ft0, ft1, ft3"); OUT("ft2"); FLAGS; })
#define FC(op, src) EACH(op, { MODE; IN("ft0", src()); IN("ft1", src()); u64 z; asm volatile(op " %0, ft0, ft1" : "=r"(z)); hash = mix(hash, z); FLAGS; })
#define FX(op, src) EACH(op, { MODE; IN("ft0", src()); u64 z; asm volatile(op " %0, ft0" : "=r"(z)); hash = mix(hash, z); FLAGS; })
#define XF(op) EACH(op, { MODE; u64 x = integer(); asm volatile(op " ft2, %0" ::"r"(x)); OUT("ft2"); FLAGS; })

static u64 cell[2] __attribute__((aligned(16)));
#define AMO(op) EACH(op, { cell[0] = integer(); u64 x = integer(), z; asm volatile(op " %0, %1, (%2)" : "=r"(z) : "r"(x), "r"(cell) : "memory"); hash = mix(mix(hash, z), cell[0]); })
#define LOAD(op) EACH(op, { cell[0] = integer(); u64 z; asm volatile(op " %0, 0(%1)" : "=r"(z) : "r"(cell) : "memory"); hash = mix(hash, z); })

int main(void) {
    RR("add"); RR("sub"); RR("sll"); RR("slt"); RR("sltu"); RR("xor"); RR("srl"); RR("sra"); RR("or"); RR("and");
    RR("addw"); RR("subw"); RR("sllw"); RR("srlw"); RR("sraw");
    RI("addi", -7); RI("slti", -3); RI("sltiu", -3); RI("xori", -1); RI("ori", 0x155); RI("andi", -16);
    RI("slli", 37); RI("srli", 37); RI("srai", 37); RI("addiw", 2047); RI("slliw", 13); RI("srliw", 13); RI("sraiw", 13);
    RR("mul"); RR("mulh"); RR("mulhsu"); RR("mulhu"); RR("div"); RR("divu"); RR("rem"); RR("remu");
    RR("mulw"); RR("divw"); RR("divuw"); RR("remw"); RR("remuw");
    RR("add.uw"); RR("sh1add"); RR("sh2add"); RR("sh3add"); RR("sh1add.uw"); RR("sh2add.uw"); RR("sh3add.uw"); RI("slli.uw", 9);
    RR("andn"); RR("orn"); RR("xnor"); R1("clz"); R1("ctz"); R1("cpop"); R1("clzw"); R1("ctzw"); R1("cpopw");
    RR("max"); RR("maxu"); RR("min"); RR("minu"); R1("sext.b"); R1("sext.h"); R1("zext.h"); R1("orc.b"); R1("rev8");
    RR("rol"); RR("ror"); RI("rori", 41); RR("rolw"); RR("rorw"); RI("roriw", 17);
    RR("clmul"); RR("clmulh"); RR("clmulr");
    RR("bclr"); RR("bext"); RR("binv"); RR("bset"); RI("bclri", 40); RI("bexti", 3); RI("binvi", 62); RI("bseti", 33);
    LOAD("lb"); LOAD("lbu"); LOAD("lh"); LOAD("lhu"); LOAD("lw"); LOAD("lwu"); LOAD("ld");
    AMO("amoswap.w"); AMO("amoadd.w"); AMO("amoxor.w"); AMO("amoand.w"); AMO("amoor.w"); AMO("amomin.w"); AMO("amomax.w");
    AMO("amominu.w"); AMO("amomaxu.w"); AMO("amoswap.d"); AMO("amoadd.d"); AMO("amoxor.d"); AMO("amoand.d"); AMO("amoor.d");
    AMO("amomin.d"); AMO("amomax.d"); AMO("amominu.d"); AMO("amomaxu.d");
    FF("fadd.d", as_double); FF("fsub.d", as_double); FF("fmul.d", as_double); FF("fdiv.d", as_double); F1("fsqrt.d", as_double);
    F4("fmadd.d", as_double); F4("fmsub.d", as_double); F4("fnmsub.d", as_double); F4("fnmadd.d", as_double);
    FF("fsgnj.d", as_double); FF("fsgnjn.d", as_double); FF("fsgnjx.d", as_double); FF("fmin.d", as_double); FF("fmax.d", as_double);
    FC("feq.d", as_double); FC("flt.d", as_double); FC("fle.d", as_double); FX("fclass.d", as_double);
    FX("fcvt.w.d", as_double); FX("fcvt.wu.d", as_double); FX("fcvt.l.d", as_double); FX("fcvt.lu.d", as_double);
    XF("fcvt.d.w"); XF("fcvt.d.wu"); XF("fcvt.d.l"); XF("fcvt.d.lu"); F1("fcvt.s.d", as_double); F1("fcvt.d.s", as_single);
    FF("fadd.s", as_single); FF("fsub.s", as_single); FF("fmul.s", as_single); FF("fdiv.s", as_single); F1("fsqrt.s", as_single);
    F4("fmadd.s", as_single); F4("fmsub.s", as_single); F4("fnmsub.s", as_single); F4("fnmadd.s", as_single);
    FF("fsgnj.s", as_single); FF("fsgnjn.s", as_single); FF("fsgnjx.s", as_single); FF("fmin.s", as_single); FF("fmax.s", as_single);
    FC("feq.s", as_single); FC("flt.s", as_single); FC("fle.s", as_single); FX("fclass.s", as_single); FX("fmv.x.w", as_single);
    FX("fcvt.w.s", as_single); FX("fcvt.wu.s", as_single); FX("fcvt.l.s", as_single); FX("fcvt.lu.s", as_single);
    XF("fcvt.s.w"); XF("fcvt.s.wu"); XF("fcvt.s.l"); XF("fcvt.s.lu"); XF("fmv.w.x");
    return 0;
}

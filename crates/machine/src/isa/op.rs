//! The table of operations: name, mnemonic, operand format.

/// Which operands an operation has, and how they are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// No operands.
    None,
    /// `rd, rs1, rs2`.
    R,
    /// `rd, rs1`.
    R1,
    /// `rd, rs1, imm`.
    I,
    /// `rd, imm(rs1)`, integer destination.
    Load,
    /// `rs2, imm(rs1)`, integer source.
    Store,
    /// `rs1, rs2, offset`.
    B,
    /// `rd, imm`, upper immediate.
    U,
    /// `rd, offset`.
    J,
    /// `rd, csr, rs1`.
    Csr,
    /// `rd, csr, zimm`.
    CsrI,
    /// `rd, (rs1)`.
    Lr,
    /// `rd, rs2, (rs1)`.
    Amo,
    /// `rs1, rs2`, a translation fence.
    Fence2,
    /// `(rs1)`, a cache block.
    Cbo,
    /// Floating load.
    FLoad,
    /// Floating store.
    FStore,
    /// `fd, fs1, fs2`, with rounding mode.
    FRm,
    /// `fd, fs1, fs2`, without rounding mode.
    F,
    /// `fd, fs1`, with rounding mode.
    F1Rm,
    /// `fd, fs1, fs2, fs3`, with rounding mode.
    F4,
    /// `rd, fs1, fs2`.
    FCmp,
    /// `rd, fs1`, without rounding mode.
    FToX,
    /// `rd, fs1`, with rounding mode.
    FToXRm,
    /// `fd, rs1`, without rounding mode.
    XToF,
    /// `fd, rs1`, with rounding mode.
    XToFRm,
}

macro_rules! ops {
    ($($name:ident $mnemonic:literal $format:ident;)*) => {
        /// An operation, named as the specification names it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u8)]
        pub enum Op { $(#[doc = $mnemonic] $name,)* }

        impl Op {
            /// Every operation, in the order of the table.
            pub const ALL: &'static [Op] = &[$(Op::$name,)*];

            /// The assembler's name.
            pub const fn mnemonic(self) -> &'static str {
                match self { $(Op::$name => $mnemonic,)* }
            }

            /// Its operands.
            pub const fn format(self) -> Format {
                match self { $(Op::$name => Format::$format,)* }
            }
        }
    };
}

ops! {
    Illegal "illegal" None;
    Lui "lui" U; Auipc "auipc" U; Jal "jal" J; Jalr "jalr" I;
    Beq "beq" B; Bne "bne" B; Blt "blt" B; Bge "bge" B; Bltu "bltu" B; Bgeu "bgeu" B;
    Lb "lb" Load; Lh "lh" Load; Lw "lw" Load; Ld "ld" Load; Lbu "lbu" Load; Lhu "lhu" Load; Lwu "lwu" Load;
    Sb "sb" Store; Sh "sh" Store; Sw "sw" Store; Sd "sd" Store;
    Addi "addi" I; Slti "slti" I; Sltiu "sltiu" I; Xori "xori" I; Ori "ori" I; Andi "andi" I;
    Slli "slli" I; Srli "srli" I; Srai "srai" I;
    Add "add" R; Sub "sub" R; Sll "sll" R; Slt "slt" R; Sltu "sltu" R; Xor "xor" R; Srl "srl" R; Sra "sra" R;
    Or "or" R; And "and" R;
    Addiw "addiw" I; Slliw "slliw" I; Srliw "srliw" I; Sraiw "sraiw" I;
    Addw "addw" R; Subw "subw" R; Sllw "sllw" R; Srlw "srlw" R; Sraw "sraw" R;
    Fence "fence" None; FenceI "fence.i" None; Pause "pause" None; Ecall "ecall" None; Ebreak "ebreak" None;
    Csrrw "csrrw" Csr; Csrrs "csrrs" Csr; Csrrc "csrrc" Csr;
    Csrrwi "csrrwi" CsrI; Csrrsi "csrrsi" CsrI; Csrrci "csrrci" CsrI;
    Mul "mul" R; Mulh "mulh" R; Mulhsu "mulhsu" R; Mulhu "mulhu" R;
    Div "div" R; Divu "divu" R; Rem "rem" R; Remu "remu" R;
    Mulw "mulw" R; Divw "divw" R; Divuw "divuw" R; Remw "remw" R; Remuw "remuw" R;
    LrW "lr.w" Lr; ScW "sc.w" Amo; AmoSwapW "amoswap.w" Amo; AmoAddW "amoadd.w" Amo; AmoXorW "amoxor.w" Amo;
    AmoAndW "amoand.w" Amo; AmoOrW "amoor.w" Amo; AmoMinW "amomin.w" Amo; AmoMaxW "amomax.w" Amo;
    AmoMinuW "amominu.w" Amo; AmoMaxuW "amomaxu.w" Amo;
    LrD "lr.d" Lr; ScD "sc.d" Amo; AmoSwapD "amoswap.d" Amo; AmoAddD "amoadd.d" Amo; AmoXorD "amoxor.d" Amo;
    AmoAndD "amoand.d" Amo; AmoOrD "amoor.d" Amo; AmoMinD "amomin.d" Amo; AmoMaxD "amomax.d" Amo;
    AmoMinuD "amominu.d" Amo; AmoMaxuD "amomaxu.d" Amo;
    Flw "flw" FLoad; Fld "fld" FLoad; Fsw "fsw" FStore; Fsd "fsd" FStore;
    FmaddS "fmadd.s" F4; FmsubS "fmsub.s" F4; FnmsubS "fnmsub.s" F4; FnmaddS "fnmadd.s" F4;
    FaddS "fadd.s" FRm; FsubS "fsub.s" FRm; FmulS "fmul.s" FRm; FdivS "fdiv.s" FRm; FsqrtS "fsqrt.s" F1Rm;
    FsgnjS "fsgnj.s" F; FsgnjnS "fsgnjn.s" F; FsgnjxS "fsgnjx.s" F; FminS "fmin.s" F; FmaxS "fmax.s" F;
    FcvtWS "fcvt.w.s" FToXRm; FcvtWuS "fcvt.wu.s" FToXRm; FcvtLS "fcvt.l.s" FToXRm; FcvtLuS "fcvt.lu.s" FToXRm;
    FmvXW "fmv.x.w" FToX; FclassS "fclass.s" FToX; FeqS "feq.s" FCmp; FltS "flt.s" FCmp; FleS "fle.s" FCmp;
    FcvtSW "fcvt.s.w" XToFRm; FcvtSWu "fcvt.s.wu" XToFRm; FcvtSL "fcvt.s.l" XToFRm; FcvtSLu "fcvt.s.lu" XToFRm;
    FmvWX "fmv.w.x" XToF;
    FmaddD "fmadd.d" F4; FmsubD "fmsub.d" F4; FnmsubD "fnmsub.d" F4; FnmaddD "fnmadd.d" F4;
    FaddD "fadd.d" FRm; FsubD "fsub.d" FRm; FmulD "fmul.d" FRm; FdivD "fdiv.d" FRm; FsqrtD "fsqrt.d" F1Rm;
    FsgnjD "fsgnj.d" F; FsgnjnD "fsgnjn.d" F; FsgnjxD "fsgnjx.d" F; FminD "fmin.d" F; FmaxD "fmax.d" F;
    FcvtSD "fcvt.s.d" F1Rm; FcvtDS "fcvt.d.s" F1Rm;
    FcvtWD "fcvt.w.d" FToXRm; FcvtWuD "fcvt.wu.d" FToXRm; FcvtLD "fcvt.l.d" FToXRm; FcvtLuD "fcvt.lu.d" FToXRm;
    FmvXD "fmv.x.d" FToX; FclassD "fclass.d" FToX; FeqD "feq.d" FCmp; FltD "flt.d" FCmp; FleD "fle.d" FCmp;
    FcvtDW "fcvt.d.w" XToFRm; FcvtDWu "fcvt.d.wu" XToFRm; FcvtDL "fcvt.d.l" XToFRm; FcvtDLu "fcvt.d.lu" XToFRm;
    FmvDX "fmv.d.x" XToF;
    AddUw "add.uw" R; Sh1add "sh1add" R; Sh2add "sh2add" R; Sh3add "sh3add" R;
    Sh1addUw "sh1add.uw" R; Sh2addUw "sh2add.uw" R; Sh3addUw "sh3add.uw" R; SlliUw "slli.uw" I;
    Andn "andn" R; Orn "orn" R; Xnor "xnor" R;
    Clz "clz" R1; Ctz "ctz" R1; Cpop "cpop" R1; Clzw "clzw" R1; Ctzw "ctzw" R1; Cpopw "cpopw" R1;
    Max "max" R; Maxu "maxu" R; Min "min" R; Minu "minu" R;
    SextB "sext.b" R1; SextH "sext.h" R1; ZextH "zext.h" R1; OrcB "orc.b" R1; Rev8 "rev8" R1;
    Rol "rol" R; Ror "ror" R; Rori "rori" I; Rolw "rolw" R; Rorw "rorw" R; Roriw "roriw" I;
    Clmul "clmul" R; Clmulh "clmulh" R; Clmulr "clmulr" R;
    Bclr "bclr" R; Bclri "bclri" I; Bext "bext" R; Bexti "bexti" I;
    Binv "binv" R; Binvi "binvi" I; Bset "bset" R; Bseti "bseti" I;
    Sret "sret" None; Mret "mret" None; Wfi "wfi" None;
    SfenceVma "sfence.vma" Fence2; SinvalVma "sinval.vma" Fence2;
    SfenceWInval "sfence.w.inval" None; SfenceInvalIr "sfence.inval.ir" None;
    CboInval "cbo.inval" Cbo; CboClean "cbo.clean" Cbo; CboFlush "cbo.flush" Cbo; CboZero "cbo.zero" Cbo;
}

/**
 * Records: decoded micro-operations in host memory, 64 bytes each, in lines that run straight on (docs/CORE.md). The decoder
 * writes them, generated handlers and the slow path's `system` read them.
 */
export const RECORD_BYTES = 64;

/** Offsets inside a record. */
export const RECORD = {
  /** u32: index of the handler. 0 leaves to fetch. */
  HANDLER: 0,
  /** u32: addresses in host memory of the operands' bytes: a register, a temporary, or this record's own IMMEDIATE. */
  A0: 4,
  A1: 8,
  A2: 12,
  /** u32: addresses of the registers of an effective address; STATE.ZERO where there is none. */
  BASE: 16,
  INDEX: 20,
  /** u32: shift of the index, 0 to 3. */
  SCALE: 24,
  /** u32: for a branch inside the page: address of the page map's word of its target. */
  TARGET: 28,
  /** i64 */
  DISPLACEMENT: 32,
  /** i64: immediate operand. For branches: target, for calls return address, both as offset from the page's start. */
  IMMEDIATE: 40,
  /** u16: offset of the instruction in its page. */
  OFFSET: 48,
  /** u8: length of the instruction. */
  LENGTH: 50,
  /** u8: 1 in the first record of an instruction. */
  FIRST: 51,
  /** u16: instructions of the line that are done before this record. */
  ORDINAL: 52,
  /** u16: instructions of the line that are done when this record is. */
  THROUGH: 54,
  /** u32: for `system` records, a SYSTEM code. */
  SYSTEM: 56,
  /** u8: for `system` records, operand size in bytes. */
  SIZE: 60,
  /** u8: for `system` records, the number of the control, debug or segment register, or the vector of INT. */
  NUMBER: 61,
  /** u8: for `system` records, 1 with a REP prefix. */
  REP: 62,
  /** u8: for `system` records, address size in bytes (4 or 8). */
  ADDRESS_SIZE: 63,
} as const;

/**
 * What `system(state, record)` is asked to do. A0 is the address of the explicit operand's bytes, SIZE bytes wide: a register,
 * or TEMP0 where the operand lies in memory (a load comes before the record, a store after it). Where the operand is an
 * address (descriptor tables, INVLPG, CLFLUSH, XSAVE), it is in TEMP_EA, linear.
 */
export const SYSTEM = {
  /** #UD: an instruction that this core does not have. */
  UNDEFINED: 0,
  /** #UD: UD0, UD1, UD2. */
  UD: 1,
  CPUID: 2,
  RDMSR: 3,
  WRMSR: 4,
  RDTSC: 5,
  RDTSCP: 6,
  RDPMC: 7,
  /** IN: SIZE; port at A1 (immediate byte, or DX), 16 bits. Result goes to AL, AX, EAX. OUT alike. */
  IN: 8,
  OUT: 9,
  /** INS, OUTS: SIZE, REP, ADDRESS_SIZE; BASE is the address of the segment's base for OUTS. */
  INS: 10,
  OUTS: 11,
  HLT: 12,
  VMCALL: 13,
  VMMCALL: 14,
  /** MOV to or from control register NUMBER; A0 is the general register (64 bits). */
  MOV_TO_CR: 15,
  MOV_FROM_CR: 16,
  MOV_TO_DR: 17,
  MOV_FROM_DR: 18,
  CLTS: 19,
  LMSW: 20,
  SMSW: 21,
  LGDT: 22,
  LIDT: 23,
  SGDT: 24,
  SIDT: 25,
  LLDT: 26,
  LTR: 27,
  SLDT: 28,
  STR: 29,
  /** MOV and POP to segment register NUMBER (ES CS SS DS FS GS = 0…5) from the 16 bits at A0. */
  MOV_TO_SEGMENT: 30,
  /** The selector goes to the SIZE bytes at A0, zero-extended. */
  MOV_FROM_SEGMENT: 31,
  INVLPG: 32,
  INVLPGA: 33,
  INVD: 34,
  WBINVD: 35,
  IRET: 36,
  /** INT n: vector in NUMBER. */
  INT: 37,
  INT3: 38,
  INT1: 39,
  SYSCALL: 40,
  SYSRET: 41,
  SYSENTER: 42,
  SYSEXIT: 43,
  SWAPGS: 44,
  XGETBV: 45,
  XSETBV: 46,
  CLI: 47,
  STI: 48,
  CLAC: 49,
  STAC: 50,
  /** Flags of SIZE bytes at A0 into RFLAGS, by privilege; the stack is already popped into TEMP0 but RSP is not moved. */
  POPF: 51,
  /** Far return: SIZE; immediate at A1 to be added to RSP. */
  RETF: 52,
  RDFSBASE: 53,
  RDGSBASE: 54,
  WRFSBASE: 55,
  WRGSBASE: 56,
  RSM: 57,
  VMRUN: 58,
  VMLOAD: 59,
  VMSAVE: 60,
  STGI: 61,
  CLGI: 62,
  SKINIT: 63,
  /** LAR, LSL: A0 result, A1 selector. VERR, VERW: A0 selector. */
  LAR: 64,
  LSL: 65,
  VERR: 66,
  VERW: 67,
  /** Far jump and call: A0 is the offset, SIZE bytes of it, A1 the selector; a call pushes each in NUMBER bytes. */
  JMPF: 68,
  CALLF: 69,
  MONITOR: 70,
  MWAIT: 71,
  INVPCID: 72,
  /** CLFLUSH, CLFLUSHOPT, CLWB: linear address in TEMP_EA. */
  CLFLUSH: 73,
  /** XSAVE family: linear address in TEMP_EA; SIZE 8 with REX.W. */
  FXSAVE: 74,
  FXRSTOR: 75,
  XSAVE: 76,
  XRSTOR: 77,
  LDMXCSR: 78,
  STMXCSR: 79,
  PVALIDATE: 80,
  RMPADJUST: 81,
  VMGEXIT: 82,
  RDRAND: 83,
  RDSEED: 84,
  PAUSE: 85,
  RDPID: 86,
  /** A floating-point instruction: NUMBER says which (float/instructions.ts), A0, A1, A2 are its operands. */
  FLOAT: 87,
  /** #NM: an instruction on vectors while CR0.TS is set. */
  NM: 88,
  RMPQUERY: 89,
  XSAVEOPT: 90,
  XSAVEC: 91,
  /** x87 control; the memory operand's linear address is in TEMP_EA. */
  FNINIT: 92,
  FNCLEX: 93,
  FNSTCW: 94,
  FLDCW: 95,
  FNSTSW: 96,
  /** FNSTSW AX */
  FNSTSW_AX: 97,
  WAIT: 98,
  /** Any other x87 instruction; A1 is its mnemonic. */
  X87: 99,
  /** LSS, LFS, LGS, LDS, LES: segment register NUMBER from the selector at A0. */
  LOAD_FAR_POINTER: 110,
  INTO: 111,
  /** #GP(0): an instruction of more than 15 bytes. */
  TOO_LONG: 112,
  /** A near branch of 16 bits in 64-bit mode: NUMBER says which (system/narrow-branches.ts). */
  NEAR16: 113,
} as const;

export type SystemName = keyof typeof SYSTEM;

/**
 * A core's state block: where registers, flags and TLBs lie in host memory. Interpreter (generated WASM) and slow path
 * (TypeScript) meet here and nowhere else. All offsets are bytes from the block's start; the block is 32 KiB, frame-aligned.
 *
 * Flags are kept as four words, so that no condition has to ask which operation set them:
 *
 *     ZF = (ZR == 0)   SF = sign(SR)   PF = even parity of SR's low byte   CF = sign(CV)   AF = bit 3 of CV   OF = sign(OV)
 *
 * Arithmetic works on sign-extended operands: ZR = SR = the sign-extended result, CV = the vector of carries (borrows), OV the
 * overflow vector. Flags that come as bits (POPF, IRET, VMRUN) are spread so: ZR = ZF ? 0 : 1, SR = SF<<63 | !PF,
 * CV = CF<<63 | AF<<3, OV = OF<<63.
 *
 * `SAVE` mirrors the VMCB's save area (abi/vmcb.ts), so VMRUN and #VMEXIT copy words. The live RIP, RSP, RAX, RFLAGS are NOT
 * there but in RIP, GPR, and flags; #VMEXIT stores them.
 */
export const STATE_ORDER = 3;

export const STATE = {
  /** u64[16] in the instruction encoding's order: rax rcx rdx rbx rsp rbp rsi rdi r8 … r15. */
  GPR: 0x000,
  /** u64; exact whenever WASM is not running. */
  RIP: 0x080,
  /** u64: linear address of the page of code that runs (RIP without its low 12 bits). RIP-relative operands use it as a base register. */
  PAGE_BASE: 0x088,
  FLAG_ZR: 0x090,
  FLAG_SR: 0x098,
  FLAG_CV: 0x0a0,
  FLAG_OV: 0x0a8,
  /** u64: RFLAGS without CF PF AF ZF SF OF, bits where RFLAGS has them; bit 1 set. */
  FLAGS_REST: 0x0b0,
  /** u64 that is always 0: the register of an operand without base or index. */
  ZERO: 0x0b8,
  /** u64 temporaries of micro-operations. */
  TEMP0: 0x0c0,
  TEMP1: 0x0c8,
  /** u64: effective address that a preceding micro-operation computed. */
  TEMP_EA: 0x0d0,
  /** u64: linear address of the memory operand of an instruction outside 64-bit mode. */
  LINEAR: 0x0d8,
  /** u64: linear address for a slow-path access. */
  ADDRESS: 0x0e0,
  /** 16 bytes: data of a slow-path access. */
  DATA: 0x0f0,
  /** u128[16] */
  XMM: 0x100,
  /** u128[2] temporaries (memory operands of SSE micro-operations). */
  XTEMP0: 0x200,
  XTEMP1: 0x210,
  MXCSR: 0x220,
  /** The interpreter's own, between its parts: u32 record (0: look RIP up), i32 budget, u32 address of a page map's word. */
  RUN_RECORD: 0x224,
  RUN_BUDGET: 0x228,
  RUN_SLOT: 0x22c,
  /** Pending exception that slow path or WASM raised: u32 vector, u32 error code, u32 1 if an error code is pushed. */
  EXCEPTION_VECTOR: 0x230,
  EXCEPTION_ERROR: 0x234,
  EXCEPTION_HAS_ERROR: 0x238,
  /** u64: instructions retired. A rep string instruction counts one. */
  RETIRED: 0x240,
  /** u32 0 to 3 */
  CPL: 0x248,
  /** u32: 0 or USER_TLB, added to the TLBs' offsets. */
  TLB_SET: 0x24c,
  /** u64 XCR0 */
  XCR0: 0x250,
  /** u32: SHADOW (interrupts.ts), what STI or MOV SS holds off from the instruction before which RETIRED is SHADOW_RETIRED. */
  INTERRUPT_SHADOW: 0x258,
  DR0: 0x260,
  /** u32: the low word of RETIRED while INTERRUPT_SHADOW counts. */
  SHADOW_RETIRED: 0x280,
  /** The x87 state: FXSAVE's first 24 bytes (error pointers of 48 bits), their selectors, from 0x320 on R0 to R7 by number, 16 bytes each. */
  X87: 0x300,
  /** The save area's mirror, SAVE.SIZE bytes used. */
  SAVE: 0x400,
  /** TLBs: 256 entries of 16 bytes, supervisor's set first, user's set USER_TLB bytes on. */
  READ_TLB: 0x1000,
  WRITE_TLB: 0x3000,
  FETCH_TLB: 0x5000,
} as const;

export const USER_TLB = 0x1000;
export const TLB_ENTRIES = 256;

/**
 * A TLB entry. Direct-mapped: the entry of linear address A lies at `((A >> 8) & 0xff0)`. READ and WRITE: an access of n bytes
 * hits iff `(A + n − 1) & ~0xfff == tag`, so one that crosses a page misses. A write entry exists only where the guest's page is
 * writable and dirty, the nested one too, and the frame holds no decoded code.
 */
export const TLB = {
  /** i64: linear page address, or TLB_EMPTY. */
  TAG: 0,
  /** u32. READ, WRITE: what to add to the low 32 bits of A (mod 2^32) to get the system physical address. FETCH: address of the page map. */
  ADDEND: 8,
  /** u32. READ, WRITE: flags (TLB_GLOBAL). FETCH: system physical address of the frame | flags in the low bits. */
  EXTRA: 12,
} as const;
export const TLB_EMPTY = 1n;
export const TLB_GLOBAL = 1;

/** GPR numbers. */
export const GPR = { RAX: 0, RCX: 1, RDX: 2, RBX: 3, RSP: 4, RBP: 5, RSI: 6, RDI: 7 } as const;

/** Why the generated `run` came back. */
export const LEAVE = {
  /** Budget used up; RIP is the next instruction. */
  BUDGET: 0,
  /** Nothing decoded at RIP (page not in the fetch TLB, or map entry empty). */
  FETCH: 1,
  /** A slow-path helper or a handler raised an exception (EXCEPTION_*); RIP is the faulting instruction. */
  EXCEPTION: 2,
  /** A slow-path helper began a #VMEXIT; RIP is the instruction. */
  VMEXIT: 3,
  /** The slow path changed RIP, CPL, mode or mappings: look at RIP again. */
  RESUME: 4,
  /** A single step is done. */
  STOP: 5,
  /** A watched address (debug.ts): the instruction at RIP must be stepped. */
  STEP: 6,
} as const;

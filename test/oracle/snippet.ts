/** A snippet of machine code and the state it starts from and ends in. */

export const WINDOW_BYTES = 1024;

export interface CpuState {
  /** rax rcx rdx rbx rsp rbp rsi rdi r8 … r15 */
  readonly registers: readonly bigint[];
  readonly flags: bigint;
  /** 16 × 16 bytes. */
  readonly vectors: Uint8Array;
  readonly mxcsr: number;
  /** The snippet's own WINDOW_BYTES of memory. */
  readonly window: Uint8Array;
}

export interface Snippet {
  readonly code: Uint8Array;
  readonly before: CpuState;
  /** RFLAGS bits that the manual leaves undefined at the end. */
  readonly undefinedFlags: bigint;
  /** Those that are undefined somewhere on the way: what counts when the snippet faults. */
  readonly everUndefined: bigint;
  /** For people. */
  readonly text: string;
}

export interface Outcome extends CpuState {
  /** Linux signal number, or 0. */
  readonly signal: number;
  /** RIP of a fault, else 0. */
  readonly rip: bigint;
  /** Where it was a page fault: its error code and CR2. */
  readonly fault?: { readonly error: bigint; readonly address: bigint } | undefined;
}

/** CF PF AF ZF SF DF OF */
export const COMPARED_FLAGS = 0xcd5n;

/** Differences between two outcomes, one a line; empty when they agree. */
export function differences(snippet: Snippet, got: Outcome, want: Outcome): string[] {
  const found: string[] = [];
  const names = 'rax rcx rdx rbx rsp rbp rsi rdi r8 r9 r10 r11 r12 r13 r14 r15'.split(' ');
  const compare = (what: string, a: bigint | number, b: bigint | number) => {
    if (a !== b) found.push(`${what}: got ${a.toString(16)}, want ${b.toString(16)}`);
  };
  // A stack fault (SIGBUS) and a general-protection fault (SIGSEGV) are one to us: both come from a non-canonical address.
  const fault = (signal: number) => (signal === 7 ? 11 : signal);
  compare('signal', fault(got.signal), fault(want.signal));
  compare('rip', got.rip, want.rip);
  names.forEach((name, n) => {
    compare(name, got.registers[n]!, want.registers[n]!);
  });
  const mask = COMPARED_FLAGS & ~(want.signal === 0 ? snippet.undefinedFlags : snippet.everUndefined);
  compare('flags', got.flags & mask, want.flags & mask);
  compare('mxcsr', got.mxcsr, want.mxcsr);
  const bytes = (name: (n: number) => string, a: Uint8Array, b: Uint8Array) => {
    for (let n = 0; n < b.length; n++) if (a[n] !== b[n]) compare(name(n), a[n]!, b[n]!);
  };
  bytes((n) => `xmm${n >> 4}[${n & 15}]`, got.vectors, want.vectors);
  bytes((n) => `memory[${n}]`, got.window, want.window);
  return found;
}

/** The same of their page faults. Linux calls every fault in the upper half one of a page that is there. */
export function faultDifferences(got: Outcome, want: Outcome): string[] {
  const text = ({ fault }: Outcome): string => {
    if (fault === undefined || !isCanonical(fault.address)) return 'none';
    const error = fault.address >> 63n === 1n ? fault.error | 1n : fault.error;
    return `error ${error}, CR2 ${fault.address.toString(16)}`;
  };
  return text(got) === text(want) ? [] : [`page fault: got ${text(got)}, want ${text(want)}`];
}

const isCanonical = (address: bigint): boolean => {
  const top = BigInt.asIntN(64, address) >> 47n;
  return top === 0n || top === -1n;
};

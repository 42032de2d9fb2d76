/**
 * What KVM uses of a core. `Core` (hardware/cpu/core.ts) is one; a test may hand in a script of exits.
 */
import type { Gpa, Spa } from '../../../base/address.ts';

/** Where an emulated instruction's accesses go that the nested table does not allow. */
export interface MmioBus {
  /** False: the data are not there yet, the instruction is abandoned without effect. */
  read(gpa: Gpa, into: Uint8Array): boolean;
  write(gpa: Gpa, from: Uint8Array): void;
  /** One element of INS or OUTS. False as for `read`. */
  portRead(port: number, into: Uint8Array): boolean;
  portWrite(port: number, from: Uint8Array): void;
}

export interface GuestCore {
  /** VMRUN of that VMCB until #VMEXIT; the low 32 bits of EXITCODE, signed. `budget` instructions used up: exit INTR. */
  vmrun(vmcb: Spa, budget: number): number;
  /** Runs the one instruction at the VMCB's RIP (KVM's instruction emulator). `exit`: it was intercepted, the VMCB says how. */
  emulate(vmcb: Spa, bus: MmioBus): 'done' | 'pending' | 'failed' | 'exit';
  /** Guest bytes at CS:RIP, as a fetch would see them. Returns how many could be read. */
  fetchBytes(vmcb: Spa, into: Uint8Array): number;
  /** General registers in the instruction encoding's order; RAX and RSP are the VMCB's. */
  readonly gpr: BigUint64Array;
  /** The same as words, low word first. */
  readonly gprWords: Int32Array;
  /** XMM0 to XMM15, 16 bytes each. */
  readonly xmm: Uint8Array;
  mxcsr: number;
  /** The x87 part of FXSAVE's image, 160 bytes, without MXCSR. */
  readX87(into: Uint8Array): void;
  writeX87(from: Uint8Array): void;
  xcr0: bigint;
  /** DR0 to DR3. */
  readonly debugAddresses: BigUint64Array;
  tscAux: bigint;
  /** Instructions retired so far. */
  readonly retired: number;
  close(): void;
}

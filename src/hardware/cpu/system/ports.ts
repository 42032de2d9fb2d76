/**
 * Port I/O: IN, OUT, INS, OUTS (APM volume 3), the TSS's I/O permission bitmap (volume 2, 12.2.4) and the IOIO intercept (15.10.2). A core
 * has no ports of its own: what the host does not intercept reads as all ones, and writes go nowhere, as on an empty bus.
 */
import { IOIO, SAVE, VMEXIT } from '../../../abi/vmcb.ts';
import { RFLAGS } from '../../../abi/x86.ts';
import { PRIVILEGE } from '../access.ts';
import { SegmentedMemory } from '../legacy/addressing.ts';
import type { MmioStep } from '../mmio.ts';
import { in64BitMode } from '../mode.ts';
import { merged } from '../processor-stack.ts';
import { SEGMENTS } from '../segments.ts';
import { GPR, STATE } from '../state.ts';
import type { SystemInstruction } from './instruction.ts';

const IOPB_OFFSET = 0x66n;
const SEGMENT_ES = 0;
const SEGMENT_DS = 3;

const SIZE_BITS = (size: number): number =>
  size === 1 ? IOIO.SIZE8 : size === 2 ? IOIO.SIZE16 : IOIO.SIZE32;

/** How wide the instruction's addresses are. */
const addressBit = ({ addressSize }: SystemInstruction): number =>
  addressSize === 8 ? IOIO.ADDRESS64 : addressSize === 4 ? IOIO.ADDRESS32 : IOIO.ADDRESS16;

export const input = (i: SystemInstruction): number => access(i, IOIO.IN);
export const output = (i: SystemInstruction): number => access(i, 0);

function access(i: SystemInstruction, direction: number): number {
  const port = i.second & 0xffff;
  const { size } = i;
  if (!i.ioPrivileged) {
    const denied = checkBitmap(i, port, size);
    if (denied !== 0) return denied;
  }
  const { intercepts, registers } = i.parts;
  if (intercepts.port(port, size)) return exitForPort(i, direction | SIZE_BITS(size) | addressBit(i), port);
  if (direction === IOIO.IN) fillWithOnes(registers, size);
  i.parts.debug.noteIo(port, size);
  return i.parts.debug.pending === 0 ? 0 : i.resume();
}

function fillWithOnes(
  registers: {
    word(o: number): number;
    setGprWord(n: number, v: number): void;
    setWord(o: number, v: number): void;
  },
  size: number,
): void {
  if (size === 4) registers.setGprWord(GPR.RAX, -1);
  else registers.setWord(0, registers.word(0) | (size === 1 ? 0xff : 0xffff));
}

export const inputString = (i: SystemInstruction): number => accessString(i, IOIO.IN);
export const outputString = (i: SystemInstruction): number => accessString(i, 0);

function accessString(i: SystemInstruction, direction: number): number {
  const { registers, intercepts } = i.parts;
  const { size, addressSize, repeats } = i;
  const port = registers.gprWord(GPR.RDX) & 0xffff;
  const count = BigInt.asUintN(8 * addressSize, registers.gpr(GPR.RCX));
  if (repeats && count === 0n) return 0;
  if (!i.ioPrivileged) {
    const denied = checkBitmap(i, port, size);
    if (denied !== 0) return denied;
  }
  const { step } = i.parts.access;
  if (step !== undefined) return transferElement(i, direction, port, step);
  if (!intercepts.port(port, size)) return transferElement(i, direction, port, EMPTY_BUS);
  const segment = direction === IOIO.IN ? SEGMENT_ES : segmentNumber(i);
  const info =
    direction | IOIO.STRING | (repeats ? IOIO.REP : 0) | SIZE_BITS(size) | addressBit(i) | (segment << 10);
  return exitForPort(i, info, port);
}

/** Ports behind which there is nothing, or those of the host's emulator. `portRead` returns 0 or a LEAVE code. */
type PortBus = Pick<MmioStep, 'portRead' | 'portWrite'>;
const EMPTY_BUS: PortBus = {
  portRead(_port, into) {
    into.fill(0xff);
    return 0;
  },
  portWrite() {},
};

/** One element of a string instruction: memory and the bus's port, then RSI or RDI, then the count. */
function transferElement(i: SystemInstruction, direction: number, port: number, bus: PortBus): number {
  const { registers, access } = i.parts;
  const { size, addressSize, repeats } = i;
  const masked = (value: bigint): bigint => BigInt.asUintN(8 * addressSize, value);
  const pointer = direction === IOIO.IN ? GPR.RDI : GPR.RSI;
  const offset = masked(registers.gpr(pointer));
  let address = offset + i.segmentBase;
  if (!in64BitMode(registers)) {
    const memory = new SegmentedMemory(i.parts);
    const segment = SEGMENTS[segmentNumber(i)]!;
    const outside = memory.at(segment, offset, size, direction === IOIO.IN ? 'write' : 'read');
    if (outside !== 0) return outside;
    address = memory.linear;
  }
  const bytes = new Uint8Array(size);
  if (direction === IOIO.IN) {
    let reason = access.probeAt(address, size, access.privilege);
    if (reason === 0) reason = bus.portRead(port, bytes);
    if (reason === 0) reason = access.storeSized(address, toLong(bytes), size, access.privilege);
    if (reason !== 0) return reason;
  } else {
    const reason = access.loadSized(address, size, access.privilege);
    if (reason !== 0) return reason;
    for (let at = 0; at < size; at++) bytes[at] = Number((access.value >> BigInt(8 * at)) & 0xffn);
    bus.portWrite(port, bytes);
  }
  const step = BigInt((registers.flagsRest & RFLAGS.DF) !== 0 ? -size : size);
  registers.setGpr(pointer, merged(registers.gpr(pointer), registers.gpr(pointer) + step, 8 * addressSize));
  const left = repeats ? masked(registers.gpr(GPR.RCX) - 1n) : 0n;
  if (repeats) registers.setGpr(GPR.RCX, merged(registers.gpr(GPR.RCX), left, 8 * addressSize));
  i.parts.debug.noteIo(port, size);
  if (left !== 0n) return i.resumeAt(registers.rip);
  return i.parts.debug.pending === 0 ? 0 : i.resume();
}

const toLong = (bytes: Uint8Array): bigint =>
  bytes.reduceRight((value, byte) => (value << 8n) | BigInt(byte), 0n);

function segmentNumber(i: SystemInstruction): number {
  const offset = i.segmentBaseOffset - STATE.SAVE - 8;
  const number = SEGMENTS.indexOf(offset as (typeof SEGMENTS)[number]);
  return number < 0 ? SEGMENT_DS : number;
}

function exitForPort(i: SystemInstruction, info: number, port: number): number {
  const reason = i.exit(VMEXIT.IOIO, info | (port << 16));
  const { exit } = i.parts.events;
  exit.info2 = exit.nextRip;
  exit.info2High = exit.nextRipHigh;
  return reason;
}

/** 0, or #GP(0) pending where the TSS's bitmap does not allow the ports. */
function checkBitmap(i: SystemInstruction, port: number, size: number): number {
  const { registers, access: memory } = i.parts;
  const limit = BigInt(registers.limit(SAVE.TR));
  const base = registers.base(SAVE.TR);
  if (limit < IOPB_OFFSET + 1n) return i.generalProtection();
  let reason = memory.loadSized(base + IOPB_OFFSET, 2, PRIVILEGE.IMPLICIT);
  if (reason !== 0) return reason;
  const at = (memory.value & 0xffffn) + BigInt(port >>> 3);
  if (at + 1n > limit) return i.generalProtection();
  reason = memory.loadSized(base + at, 2, PRIVILEGE.IMPLICIT);
  if (reason !== 0) return reason;
  const mask = ((1 << size) - 1) << (port & 7);
  return (Number(memory.value & 0xffffn) & mask) === 0 ? 0 : i.generalProtection();
}

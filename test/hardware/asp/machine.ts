/** A machine with SNP and a secure processor, driven as the kernel drives it, and a guest's side of guest messages. Command buffers are built by hand, not by src/abi. */
import { createCipheriv, createDecipheriv } from 'node:crypto';
import { PAGE_SIZE, type Pfn, type Spa } from '../../../src/base/address.ts';
import { seededEntropy } from '../../../src/base/entropy.ts';
import { Trace } from '../../../src/base/trace.ts';
import { SecureProcessor } from '../../../src/hardware/asp/secure-processor.ts';
import { Chip, type ChipOptions } from '../../../src/hardware/chip.ts';
import { HostMemory, NO_FRAME } from '../../../src/hardware/memory/host-memory.ts';
import type { Rmp } from '../../../src/hardware/memory/rmp.ts';

export const CMD = {
  INIT_EX: 0x85,
  SHUTDOWN_EX: 0x86,
  PLATFORM_STATUS: 0x83,
  DF_FLUSH: 0x84,
  DECOMMISSION: 0x90,
  ACTIVATE: 0x91,
  GUEST_STATUS: 0x92,
  GCTX_CREATE: 0x93,
  GUEST_REQUEST: 0x94,
  ACTIVATE_EX: 0x95,
  LAUNCH_START: 0xa0,
  LAUNCH_UPDATE: 0xa1,
  LAUNCH_FINISH: 0xa2,
  DBG_DECRYPT: 0xb0,
  DBG_ENCRYPT: 0xb1,
  SET_STATE: 0xc6,
  RECLAIM: 0xc7,
  UNSMASH: 0xc8,
  CONFIG: 0xc9,
  COMMIT: 0xcb,
  VLEK_LOAD: 0xcd,
  FEATURE_INFO: 0xce,
} as const;

/** Fields of a command buffer by offset: [offset, size in bytes, value]. */
export type Field = readonly [offset: number, size: 1 | 2 | 4 | 8, value: number | bigint];

export class Machine {
  readonly memory: HostMemory;
  readonly chip: Chip;
  readonly trace = new Trace();
  readonly asp: SecureProcessor;
  readonly rmp: Rmp;
  /** A page for command buffers. */
  readonly buffer: Spa;
  readonly #owner;

  constructor(options: Partial<ChipOptions> & { bytes?: number; smt?: boolean; sockets?: number } = {}) {
    const entropy = seededEntropy(7);
    const { bytes, smt, sockets, ...ofChip } = options;
    this.memory = HostMemory.create({ bytes: bytes ?? 16 << 20, trace: this.trace, rmp: true });
    this.rmp = this.memory.rmp!;
    this.chip = new Chip({ generation: 'milan', entropy, ...ofChip });
    const { memory, chip, trace } = this;
    this.asp = new SecureProcessor({
      memory,
      chip,
      trace,
      entropy,
      ...(smt !== undefined && { smt }),
      ...(sockets !== undefined && { sockets }),
    });
    this.#owner = memory.owner('test');
    this.buffer = this.page();
  }

  /** A zeroed page of the host. */
  page(order = 0): Spa {
    const frame = this.memory.allocate(order, this.#owner);
    if (frame === NO_FRAME) throw new Error('out of memory');
    return (frame * PAGE_SIZE) as Spa;
  }

  /** A page that RMPUPDATE gave to firmware. */
  firmwarePage(): Spa {
    const at = this.page();
    this.rmpupdate(at, { immutable: true });
    return at;
  }

  rmpupdate(
    at: Spa,
    state: { gpa?: number; asid?: number; immutable?: boolean; large?: boolean; assigned?: boolean },
  ): void {
    const { gpa = 0, asid = 0, immutable = false, large = false, assigned = true } = state;
    const code = this.rmp.rmpupdate(at, { gpa, asid, immutable, large, assigned });
    if (code !== 0) throw new Error(`RMPUPDATE: ${code}`);
  }

  stateOf(at: Spa): string {
    return this.rmp.state((at / PAGE_SIZE) as Pfn);
  }

  run(command: number, fields: readonly Field[] = []): number {
    const bytes = new Uint8Array(64);
    const view = new DataView(bytes.buffer);
    for (const [offset, size, value] of fields) {
      if (size === 8) view.setBigUint64(offset, BigInt(value), true);
      else if (size === 4) view.setUint32(offset, Number(value), true);
      else if (size === 2) view.setUint16(offset, Number(value), true);
      else view.setUint8(offset, Number(value));
    }
    this.memory.write(this.buffer, bytes);
    return this.asp.execute(command, this.buffer);
  }

  /** SNP_INIT_EX, then what Linux does before the first guest. */
  init(): this {
    expectSuccess('INIT_EX', this.run(CMD.INIT_EX, [[0, 4, 1]]));
    this.asp.cachesWrittenBack();
    expectSuccess('DF_FLUSH', this.run(CMD.DF_FLUSH));
    return this;
  }

  createContext(): Spa {
    const context = this.firmwarePage();
    expectSuccess('GCTX_CREATE', this.run(CMD.GCTX_CREATE, [[0, 8, context]]));
    return context;
  }

  launchStart(context: Spa, policy = 0x30000n): number {
    return this.run(CMD.LAUNCH_START, [
      [0, 8, context],
      [8, 8, policy],
    ]);
  }

  activate(context: Spa, asid: number): number {
    return this.run(CMD.ACTIVATE, [
      [0, 8, context],
      [8, 4, asid],
    ]);
  }

  /** A guest in state LAUNCH, active. */
  startGuest(options: { asid?: number; policy?: bigint } = {}): Spa {
    const context = this.createContext();
    expectSuccess('LAUNCH_START', this.launchStart(context, options.policy));
    expectSuccess('ACTIVATE', this.activate(context, options.asid ?? 1));
    return context;
  }

  /** A page of the host with `content`, in state Pre-Guest. */
  preGuestPage(gpa: number, content?: Uint8Array, asid = 1): Spa {
    const at = this.page();
    if (content !== undefined) this.memory.write(at, content);
    this.rmpupdate(at, { gpa, asid, immutable: true });
    return at;
  }

  launchUpdate(
    context: Spa,
    page: Spa,
    type: number,
    options: { large?: boolean; imi?: boolean; permissions?: number } = {},
  ): number {
    const flags = (options.large ? 1 : 0) | (type << 1) | (options.imi ? 16 : 0);
    return this.run(CMD.LAUNCH_UPDATE, [
      [0, 8, context],
      [8, 4, flags],
      [16, 8, page],
      [24, 4, options.permissions ?? 0],
    ]);
  }

  launchFinish(context: Spa, fields: readonly Field[] = []): number {
    return this.run(CMD.LAUNCH_FINISH, [[0, 8, context], ...fields]);
  }

  reclaim(at: Spa, large = false): number {
    return this.run(CMD.RECLAIM, [[0, 8, at + (large ? 1 : 0)]]);
  }

  /** What a host reads. */
  read(at: Spa, size: number): Uint8Array {
    const bytes = new Uint8Array(size);
    this.memory.read(at, bytes);
    return bytes;
  }

  /** What the guest with that ASID reads of a frame. */
  readAs(asid: number, at: Spa, size: number): Uint8Array {
    const bytes = new Uint8Array(size);
    this.memory.encryption.readUnder(this.memory.encryption.keyOf(asid), at, bytes);
    return bytes;
  }

  /** A running guest that has its secrets page: a guest's side of messages. */
  runGuest(options: { asid?: number; policy?: bigint; finish?: readonly Field[] } = {}): Guest {
    return this.finishGuest(this.startGuest(options), options);
  }

  /** Gives a guest in state LAUNCH its secrets page, and lets it run. */
  finishGuest(context: Spa, options: { asid?: number; finish?: readonly Field[] } = {}): Guest {
    const asid = options.asid ?? 1;
    const secrets = this.preGuestPage(0x2000, undefined, asid);
    expectSuccess('LAUNCH_UPDATE', this.launchUpdate(context, secrets, 5));
    expectSuccess('LAUNCH_FINISH', this.launchFinish(context, options.finish));
    return new Guest(this, context, this.readAs(asid, secrets, 4096));
  }

  close(): void {
    this.memory.close();
  }
}

export function expectSuccess(what: string, status: number): void {
  if (status !== 0) throw new Error(`${what}: status 0x${status.toString(16)}`);
}

export interface Answer {
  /** Of the command. */
  status: number;
  header: Uint8Array;
  payload: Uint8Array;
}

export class Guest {
  readonly machine: Machine;
  readonly context: Spa;
  readonly request: Spa;
  readonly response: Spa;
  /** Last used, by VMPCK. */
  readonly sequences = [0n, 0n, 0n, 0n];
  readonly #secrets: Uint8Array;

  constructor(machine: Machine, context: Spa, secrets: Uint8Array) {
    this.machine = machine;
    this.context = context;
    this.#secrets = secrets;
    this.request = machine.page();
    this.response = machine.firmwarePage();
  }

  vmpck(n: number): Uint8Array {
    return this.#secrets.slice(0x20 + n * 32, 0x40 + n * 32);
  }

  /** A message as bytes. */
  message(
    type: number,
    payload: Uint8Array,
    options: { vmpck?: number; version?: number; sequence?: bigint } = {},
  ): Uint8Array {
    const vmpck = options.vmpck ?? 0;
    const message = new Uint8Array(0x60 + payload.length);
    const view = new DataView(message.buffer);
    const sequence = options.sequence ?? this.sequences[vmpck]! + 1n;
    view.setBigUint64(0x20, sequence, true);
    view.setUint8(0x30, 1);
    view.setUint8(0x31, 1);
    view.setUint16(0x32, 0x60, true);
    view.setUint8(0x34, type);
    view.setUint8(0x35, options.version ?? 1);
    view.setUint16(0x36, payload.length, true);
    view.setUint8(0x3c, vmpck);
    return this.seal(message, payload);
  }

  /** Encrypts `payload` into a message whose header stands. */
  seal(message: Uint8Array, payload: Uint8Array): Uint8Array {
    const key = this.vmpck(message[0x3c]! & 3);
    const cipher = createCipheriv('aes-256-gcm', key, ivOf(message)).setAAD(message.subarray(0x30, 0x60));
    message.set(cipher.update(payload), 0x60);
    cipher.final();
    message.set(cipher.getAuthTag(), 0);
    return message;
  }

  /** Has the host send bytes as they are. Returns the command's status. */
  send(message: Uint8Array): number {
    this.machine.memory.write(this.request, message);
    return this.machine.run(CMD.GUEST_REQUEST, [
      [0, 8, this.context],
      [8, 8, this.request],
      [16, 8, this.response],
    ]);
  }

  /** Sends a message and unwraps the answer. */
  ask(type: number, payload: Uint8Array, options: { vmpck?: number; version?: number } = {}): Answer {
    const vmpck = options.vmpck ?? 0;
    const status = this.send(this.message(type, payload, options));
    if (status !== 0) return { status, header: new Uint8Array(0), payload: new Uint8Array(0) };
    const answer = this.machine.read(this.response, 4096);
    const size = new DataView(answer.buffer).getUint16(0x36, true);
    const header = answer.slice(0, 0x60);
    const decipher = createDecipheriv('aes-256-gcm', this.vmpck(vmpck), ivOf(header))
      .setAAD(header.subarray(0x30))
      .setAuthTag(header.subarray(0, 16));
    const plain = decipher.update(answer.subarray(0x60, 0x60 + size));
    decipher.final();
    this.sequences[vmpck]! += 2n;
    return { status, header, payload: new Uint8Array(plain) };
  }

  /** A report, with the status of its answer. */
  report(options: { data?: Uint8Array; vmpl?: number; keySelect?: number; vmpck?: number } = {}): {
    status: number;
    report: Uint8Array;
  } {
    const payload = new Uint8Array(96);
    payload.set(options.data ?? new Uint8Array(64));
    const view = new DataView(payload.buffer);
    view.setUint32(0x40, options.vmpl ?? 0, true);
    view.setUint32(0x44, options.keySelect ?? 0, true);
    const answer = this.ask(5, payload, options.vmpck === undefined ? {} : { vmpck: options.vmpck });
    expectSuccess('GUEST_REQUEST', answer.status);
    const status = new DataView(answer.payload.buffer).getUint32(0, true);
    return { status, report: answer.payload.slice(0x20, 0x20 + 0x4a0) };
  }
}

function ivOf(header: Uint8Array): Uint8Array {
  const iv = new Uint8Array(12);
  iv.set(header.subarray(0x20, 0x28));
  return iv;
}

export const hex = (bytes: Uint8Array): string => Buffer.from(bytes).toString('hex');

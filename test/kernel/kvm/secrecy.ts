/**
 * Histories of an SNP guest on a hostile host: short sequences of launches, conversions, faults, punches, messages and failures, each kind as often as the others. The guest's
 * part is a script; that of one whose code runs is in secret-guest.ts. What happened is counted, since a history proves nothing about what it has not seen.
 */

import { parseReport } from '../../../src/attest/report.ts';
import { describeReport } from '../../../src/attest/report-text.ts';
import type { Hva, Pfn, Spa } from '../../../src/base/address.ts';
import { RmpViolation } from '../../../src/hardware/memory/rmp-violation.ts';
import type { Vm } from '../../../src/kernel/kvm/vm.ts';
import { Random } from '../../oracle/random.ts';
import { BUFFER, GhcbBench } from './ghcb-bench.ts';
import { GuestMessages } from './guest-messages.ts';
import { PuppetGuest } from './puppet-guest.ts';
import { RecordedKeys } from './recorded-keys.ts';
import { SecretSearch } from './secrecy-search.ts';
import { FRESH, SECRETS, SHARED, type SnpVm } from './snp-bench.ts';
import { exit, HLT } from './vcpu-bench.ts';

const PUNCH = 3;
const REQUEST = SHARED;
const RESPONSE = SHARED + 0x1000;
const CERTS = SHARED + 0x2000;
const GUEST_REQUEST = 0x94;
const DBG_DECRYPT = 0xb0;
const SHARED_STATE = { assigned: false, large: false, immutable: false, gpa: 0, asid: 0 };
/** What firmware is made to answer: RESOURCE_LIMIT, which it says of itself never here. */
const INJECTED = 0x17;

/** What can happen in a history. */
export const KINDS = [
  'launch',
  'conversion to private',
  'conversion to shared',
  'conversion by the guest',
  'fault',
  'punch',
  'write of the guest',
  'report',
  'extended report',
  'derived key',
  'damaged message',
  'write of the host',
  'page taken from the guest',
  'vCPU read',
  'platform read',
  'debugging by firmware',
  'DBG_ENCRYPT from a page of the guest',
  'LAUNCH_UPDATE of a page of the guest',
  'commands that read a page of the guest',
  'GCTX_CREATE fails',
  'LAUNCH_START fails',
  'ACTIVATE fails',
  'LAUNCH_UPDATE fails',
  'LAUNCH_FINISH fails',
  'DECOMMISSION fails',
  'PAGE_RECLAIM fails',
  'GUEST_REQUEST fails',
] as const;
export type Kind = (typeof KINDS)[number];

/** A machine with a guest, and others that come and go; many short lives on it. */
export class SecretMachine {
  readonly bench: GhcbBench;
  readonly search: SecretSearch;
  /** How often each kind happened, not only was tried. */
  readonly happened = new Map<Kind, number>(KINDS.map((kind) => [kind, 0]));
  readonly messages: GuestMessages;
  #random = new Random(0);
  /** Kinds still to come before any comes again. */
  #deck: Kind[] = [];
  #failures = 0;

  constructor() {
    const keys = new RecordedKeys(5);
    this.bench = new GhcbBench({
      entropy: keys,
      memory: 5 << 20,
      keepOpen: true,
      certs: true,
      launch: (snp) => {
        snp.update(5, SECRETS, 4096);
        snp.update(3, 0x10000, 0x2000);
      },
    }).register();
    const { snp } = this;
    this.search = new SecretSearch(snp, keys);
    snp.kernel.trace.listen((event) => {
      if (event.who === 'firmware' && event['status'] === 'RESOURCE_LIMIT') this.#failures++;
    });
    this.messages = new GuestMessages(snp);
  }

  get snp(): SnpVm {
    return this.bench.snp;
  }

  /** One history. */
  live(seed: number): void {
    this.#random = new Random(seed);
    for (let left = 2 + this.#random.below(4); left > 0; left--) this.#step();
  }

  #step(): void {
    if (this.#deck.length === 0) this.#deck = [...KINDS];
    const [kind] = this.#deck.splice(this.#random.below(this.#deck.length), 1) as [Kind];
    const page = FRESH + 4096 * this.#random.below(8);
    let did = false;
    this.search.attempt(() => {
      did = this.#do(kind, page);
    });
    if (did) this.happened.set(kind, this.happened.get(kind)! + 1);
  }

  /** Whether it came about. */
  #do(kind: Kind, page: number): boolean {
    const { snp } = this;
    const { memory, secureProcessor } = snp.kernel;
    const inject = (command: number): void => secureProcessor!.inject({ command, nth: 1, status: INJECTED });
    const whileFailing = (command: number, action: () => unknown): boolean => {
      const before = this.#failures;
      inject(command);
      this.search.attempt(action);
      return this.#failures === before + 1;
    };
    switch (kind) {
      case 'launch':
        return this.#launchAnother();
      case 'conversion to private':
        snp.attributes(page, 4096, 8n);
        return true;
      case 'conversion to shared':
        this.#writeSecret(page);
        snp.attributes(page, 4096, 0n);
        return true;
      case 'conversion by the guest':
        return this.#convertByGuest(page);
      case 'fault':
        return this.#fault(page);
      case 'punch':
        this.#ownPage(page);
        snp.process.fallocate(snp.gmem, PUNCH, BigInt(page), 4096n);
        return this.#frameOf(snp.vm, page) === undefined;
      case 'write of the guest':
        this.#writeSecret(0x10000 + 8 * this.#random.below(1000));
        return this.#ownPage(page);
      case 'report':
        return this.#ask('plain');
      case 'extended report':
        return this.#ask('extended');
      case 'derived key':
        return this.#deriveKey();
      case 'damaged message': {
        const message = this.#reportRequest();
        message[this.#random.below(0xc0)]! ^= 1 << this.#random.below(8);
        this.bench.write(REQUEST, message);
        return this.#request(0x8000_0011n) !== 0n;
      }
      case 'write of the host':
        return this.#writeOfHost(page);
      case 'page taken from the guest':
        return this.#takePage(page);
      case 'vCPU read':
        this.search.readVcpu();
        return true;
      case 'platform read':
        return this.#readPlatform();
      case 'debugging by firmware': {
        const { psp } = snp.kernel;
        const at = BigInt(this.#frameOf(snp.vm, SECRETS)! * 4096);
        const into = new Uint8Array(4096);
        const status = psp!.ask(DBG_DECRYPT, into, (to) => u64s(BigInt(snp.vm.sev!.context! * 4096), at, to));
        this.search.answers.push(into);
        return status !== 0;
      }
      case 'DBG_ENCRYPT from a page of the guest':
        return this.#havePuppet((puppet) => {
          const victim = this.#ownPage(page) && this.#random.below(2) === 0 ? page : SECRETS;
          this.search.answers.push(puppet.encryptedFrom(this.#frameOf(snp.vm, victim)!));
          return true;
        });
      case 'LAUNCH_UPDATE of a page of the guest':
        return this.#havePuppet((puppet) => {
          if (!this.#ownPage(page)) return false;
          const frame = this.#frameOf(snp.vm, page)!;
          this.search.answers.push(puppet.launchedWith(frame));
          return memory.rmp!.rmpupdate((frame * 4096) as Spa, this.#unvalidated(page)) === 0;
        });
      case 'commands that read a page of the guest':
        return this.#havePuppet((puppet) => this.#ownPage(page) && this.#judge(puppet, page));
      case 'GCTX_CREATE fails':
        return whileFailing(0x93, () => this.#launchAnother());
      case 'LAUNCH_START fails':
        return whileFailing(0xa0, () => this.#launchAnother());
      case 'ACTIVATE fails':
        return whileFailing(0x91, () => this.#launchAnother());
      case 'LAUNCH_UPDATE fails':
        return whileFailing(0xa1, () => this.#launchAnother());
      case 'LAUNCH_FINISH fails':
        return whileFailing(0xa2, () => this.#launchAnother());
      // These two lose a page for ever: memory is not to run out.
      case 'DECOMMISSION fails':
        return memory.freeFrames > 400 && whileFailing(0x90, () => this.#launchAnother());
      case 'PAGE_RECLAIM fails':
        return memory.freeFrames > 400 && whileFailing(0xc7, () => this.#launchAnother());
      case 'GUEST_REQUEST fails':
        this.bench.write(REQUEST, this.#reportRequest());
        return whileFailing(GUEST_REQUEST, () => this.#request(0x8000_0011n));
    }
  }

  /** A private fault of the guest. True: the page is its own now. */
  #fault(page: number): boolean {
    const { core, snp } = this.bench;
    snp.attributes(page, 4096, 8n);
    core.script.splice(0);
    core.script.push(exit(0x400, 4n | (4n << 32n), BigInt(page)), HLT);
    snp.vcpu.run();
    return this.#frameOf(snp.vm, page) !== undefined;
  }

  /** The guest has the page, has validated it, and keeps a secret there. */
  #ownPage(page: number): boolean {
    if (!this.#fault(page)) return false;
    this.snp.kernel.memory.rmp!.setValidated(this.#frameOf(this.snp.vm, page)!, true);
    return this.#writeSecret(page + 8 * this.#random.below(500));
  }

  /** The guest stores 16 bytes that nobody else has. */
  #writeSecret(gpa: number): boolean {
    const { snp } = this;
    const frame = this.#frameOf(snp.vm, gpa - (gpa % 4096));
    if (frame === undefined) return false;
    const bytes = this.#bytes(16);
    const { encryption } = snp.kernel.memory;
    const at = (frame * 4096 + (gpa % 4096)) as Spa;
    encryption.writeUnder(encryption.keyOf(snp.vm.sev!.asid), at, bytes);
    this.search.keep(`secret at 0x${gpa.toString(16)}`, bytes);
    return true;
  }

  /** A page state change by list, as the guest asks and the VMM carries out. */
  #convertByGuest(page: number): boolean {
    const { bench, snp } = this;
    const operation = 1n + BigInt(this.#random.below(2));
    bench.write(BUFFER, u64s(0n, BigInt(page) | (operation << 52n)));
    bench.request({ code: 0x8000_0010n, info1: 0n, info2: 0n, scratch: BigInt(BUFFER) });
    if (bench.exitReason !== 3) return false;
    snp.attributes(page, 4096, operation === 1n ? 8n : 0n);
    snp.vcpu.kvmRun.hypercallRet = 0n;
    return snp.vcpu.run() === 0 && bench.answer[1] === 0n;
  }

  /** A message for firmware that asks for a report about bytes that only the guest knows so far. */
  #reportRequest(): Uint8Array {
    const data = this.#bytes(64);
    this.search.keep('REPORT_DATA', data, 'reported');
    return this.messages.reportRequest(data);
  }

  /** Sends what is in the request page. SW_EXITINFO2 of the answer. */
  #request(code: bigint): bigint {
    const pages = { info1: BigInt(REQUEST), info2: BigInt(RESPONSE), rax: BigInt(CERTS), rbx: 1n };
    this.bench.request({ code, ...pages });
    return this.bench.answer[1];
  }

  /** A report, which the guest then publishes. */
  #ask(how: 'plain' | 'extended'): boolean {
    const { bench, snp, search } = this;
    bench.write(REQUEST, this.#reportRequest());
    this.#request(how === 'plain' ? 0x8000_0011n : 0x8000_0012n);
    if (how === 'extended') {
      if (bench.exitReason !== 43) return false;
      const ret = this.#random.pick([0n, 0n, 28n, 11n, 5n]);
      snp.vcpu.sev!.exits.reqCertsRet = ret;
      snp.process.memory.write((snp.hva + CERTS) as Hva, new Uint8Array(24));
      snp.vcpu.run();
      if (ret !== 0n) return bench.answer[1] !== 0n;
    }
    if (bench.answer[1] !== 0n) return false;
    const answer = this.messages.open(snp.read(RESPONSE, 4096));
    search.keep('signature of a report', answer.subarray(0x20 + 0x2a0, 0x20 + 0x2b0), 'reported');
    search.reports.push(answer);
    search.printed.push(
      describeReport(parseReport(answer))
        .map((line) => line.join(': '))
        .join('\n'),
    );
    return true;
  }

  #deriveKey(): boolean {
    const payload = new Uint8Array(32);
    payload.set(u64s(BigInt(this.#random.below(64))), 8);
    this.bench.write(REQUEST, this.messages.seal(3, payload));
    if (this.#request(0x8000_0011n) !== 0n) return false;
    const key = this.messages.open(this.snp.read(RESPONSE, 4096)).subarray(0x20, 0x40);
    this.search.keep('derived key', key);
    return key.some((byte) => byte !== 0);
  }

  /** Into the shared page, and at the private one, which hardware refuses. */
  #writeOfHost(page: number): boolean {
    const { snp } = this;
    snp.process.memory.write((snp.hva + page) as Hva, new Uint8Array(64).fill(this.#random.below(256)));
    const frame = this.#frameOf(snp.vm, SECRETS)!;
    try {
      snp.kernel.memory.write((frame * 4096) as Spa, new Uint8Array(16));
    } catch (error) {
      return error instanceof RmpViolation;
    }
    return false;
  }

  /** RMPUPDATE to the hypervisor, perhaps with a write, and back: the guest would have to validate it anew. */
  #takePage(page: number): boolean {
    const { snp } = this;
    const { memory } = snp.kernel;
    this.#ownPage(page);
    const frame = this.#frameOf(snp.vm, page);
    if (frame === undefined) return false;
    const at = (frame * 4096) as Spa;
    if (memory.rmp!.rmpupdate(at, SHARED_STATE) !== 0) return false;
    const bytes = new Uint8Array(4096);
    memory.read(at, bytes);
    this.search.answers.push(bytes);
    if (this.#random.below(2) === 0) memory.write((at + 8 * this.#random.below(500)) as Spa, this.#bytes(8));
    return (
      memory.rmp!.rmpupdate(at, this.#unvalidated(page)) === 0 && memory.rmp!.state(frame) === 'guest-invalid'
    );
  }

  /** What RMPUPDATE makes of a page that goes to the guest. */
  #unvalidated(page: number) {
    return { ...SHARED_STATE, assigned: true, asid: this.snp.vm.sev!.asid, gpa: page };
  }

  #havePuppet(action: (puppet: PuppetGuest) => boolean): boolean {
    const puppet = new PuppetGuest(this.snp);
    try {
      return action(puppet);
    } finally {
      puppet.close();
    }
  }

  /** Firmware's verdict on a page where the guest keeps a message, or zeros. */
  #judge(puppet: PuppetGuest, page: number): boolean {
    const { encryption } = this.snp.kernel.memory;
    const { asid, context, responsePage } = this.snp.vm.sev!;
    const frame = this.#frameOf(this.snp.vm, page)!;
    const kept = this.#random.below(2) === 0 ? this.#reportRequest() : new Uint8Array(4096);
    encryption.writeUnder(encryption.keyOf(asid), (frame * 4096) as Spa, kept);
    puppet.judge(frame, { context: context!, response: responsePage });
    return true;
  }

  /** What /dev/sev tells anybody. */
  #readPlatform(): boolean {
    const { process, sevFd } = this.snp;
    const data = new Uint8Array(128);
    for (const cmd of [9, 1, 7])
      if (this.search.attempt(() => process.sevIssueCommand(sevFd, { cmd, data })))
        this.search.answers.push(data.slice());
    return this.search.answers.length > 0;
  }

  /** A second guest, from INIT2 to its end. */
  #launchAnother(): boolean {
    const { snp, search } = this;
    const { process } = snp;
    const vm = process.openKvm().createVm(4) as Vm;
    const gmem = vm.createGuestMemfd({ size: 0x10000n, flags: 0n });
    const hva = process.memory.mmap({ length: 0x10000, protection: 3, flags: 0x22 });
    try {
      vm.setUserMemoryRegion2({
        slot: 0,
        flags: 4,
        guestPhysAddr: 0n,
        memorySize: 0x10000n,
        userspaceAddr: BigInt(hva),
        guestMemfd: gmem,
        guestMemfdOffset: 0n,
      });
      vm.setMemoryAttributes({ address: 0n, size: 0x10000n, attributes: 8n, flags: 0n });
      const { sevFd } = snp;
      vm.memoryEncryptOp({ id: 22, sevFd, data: { vmsaFeatures: 0n, flags: 0, ghcbVersion: 0 } });
      const policy = this.#random.pick([0x3_0000n, 0x13_0000n]);
      vm.memoryEncryptOp({ id: 100, sevFd, data: { policy, gosvw: new Uint8Array(16), flags: 0 } });
      for (const [gfnStart, type] of [
        [0n, 5],
        [1n, 1],
        [2n, 3],
      ] as const) {
        const data = { gfnStart, uaddr: BigInt(hva), len: 4096n, type, flags: 0 };
        vm.memoryEncryptOp({ id: 101, sevFd, data });
      }
      const data = { vcekDisabled: false, hostData: new Uint8Array(32), flags: 0 };
      vm.memoryEncryptOp({ id: 102, sevFd, data });
      const [leak] = search.leaks();
      if (leak !== undefined) throw new Error(`${leak.secret}: ${leak.place}`);
      return true;
    } finally {
      process.memory.munmap(hva, 0x10000);
      vm.close();
      process.close(gmem);
    }
  }

  /** The guest's frame at a gpa. */
  #frameOf(vm: Vm, gpa: number): Pfn | undefined {
    const { rmp, frameCount } = this.snp.kernel.memory;
    const { asid } = vm.sev!;
    for (let frame = 0; frame < frameCount; frame++)
      if (rmp!.assigned(frame as Pfn)) {
        const entry = rmp!.entry(frame as Pfn);
        if (entry.asid === asid && entry.gpa === gpa) return frame as Pfn;
      }
    return undefined;
  }

  /** None of them is 0. */
  #bytes(count: number): Uint8Array {
    return Uint8Array.from({ length: count }, () => 1 + this.#random.below(255));
  }

  close(): void {
    this.search.close();
    this.snp.process.exit();
    this.snp.kernel.close();
  }
}

function u64s(...values: readonly bigint[]): Uint8Array {
  return new Uint8Array(BigUint64Array.from(values).buffer);
}

/** SNP guest requests, plain and extended, in the landed form, as 6.12 has them and in seed 001's: every answer (reference facts 5.5 and 5.6). */
import { describe, expect, it } from 'vitest';
import type { EarlyForm, Personality } from '../../../src/kernel/kvm/index.ts';
import { GhcbBench, type Request } from './ghcb-bench.ts';
import { GuestMessages } from './guest-messages.ts';
import { SECRETS, SHARED } from './snp-bench.ts';

const REQUEST = SHARED;
const RESPONSE = SHARED + 0x1000;
const CERTS = SHARED + 0x2000;
const HLT = 5;
const NOWHERE = 0x4000_0000n;

interface Options {
  readonly kernel?: Personality;
  readonly early?: readonly EarlyForm[];
  readonly certs?: boolean;
  readonly keepOpen?: boolean;
}

class Guest {
  readonly bench: GhcbBench;
  readonly messages: GuestMessages;
  readonly data = new Uint8Array(64).fill(0x5a);

  constructor(options: Options = {}) {
    this.bench = new GhcbBench({ ...options, launch: (snp) => snp.update(5, SECRETS, 4096) }).register();
    this.messages = new GuestMessages(this.bench.snp);
    this.bench.write(RESPONSE, new Uint8Array(4096).fill(0xee));
    this.bench.write(REQUEST, this.messages.reportRequest(this.data));
  }

  plain(request: Partial<Request> = {}): number {
    const pages = { info1: BigInt(REQUEST), info2: BigInt(RESPONSE) };
    return this.bench.request({ code: 0x8000_0011n, ...pages, ...request });
  }
  extended(request: Partial<Request> = {}): number {
    const pages = { info1: BigInt(REQUEST), info2: BigInt(RESPONSE), rax: BigInt(CERTS), rbx: 1n };
    return this.bench.request({ code: 0x8000_0012n, ...pages, ...request });
  }
  get info2(): bigint {
    return this.bench.answer[1];
  }
  /** REPORT_DATA of the report that came; undefined: firmware was not asked. */
  report(): Uint8Array | undefined {
    const page = this.bench.snp.read(RESPONSE, 4096);
    if (page.every((byte) => byte === 0xee)) return undefined;
    return this.messages.open(page).subarray(0x20 + 0x50, 0x20 + 0x90);
  }
  get wasAsked(): boolean {
    return this.bench.snp.read(RESPONSE, 1)[0] !== 0xee;
  }
  get exit(): [number, bigint, bigint] {
    const { exits } = this.bench.snp.vcpu.sev!;
    return [this.bench.exitReason, exits.reqCertsGpa, exits.reqCertsNpages];
  }
}

describe('a plain guest request', () => {
  it('has firmware answer: info2 is 0, and the next message follows', () => {
    const guest = new Guest();
    for (let i = 0; i < 3; i++) {
      guest.bench.write(REQUEST, guest.messages.reportRequest(guest.data.fill(i)));
      expect(guest.plain()).toBe(0);
      expect([guest.bench.exitReason, ...guest.bench.answer]).toEqual([HLT, 0n, 0n]);
      expect(guest.report()).toEqual(guest.data);
    }
  });

  // What the request page holds; firmware's status in the low half of info2.
  const FIRMWARE: readonly (readonly [string, (guest: Guest) => Uint8Array, bigint])[] = [
    ['no message at all', () => new Uint8Array(4096), 0x16n],
    ['a wrong tag', ({ messages, data }) => flip(messages.reportRequest(data), 0), 0x0bn],
    ['a changed payload', ({ messages, data }) => flip(messages.reportRequest(data), 0x70), 0x0bn],
    ['a number that was used', ({ messages, data }) => messages.reportRequest(data, 0n), 0x1dn],
    ['a number to come', ({ messages, data }) => messages.reportRequest(data, 3n), 0x1dn],
  ];
  for (const [name, page, status] of FIRMWARE)
    it(`with ${name}: firmware's status, and the response page is written all the same`, () => {
      const guest = new Guest();
      guest.bench.write(REQUEST, page(guest));
      expect(guest.plain()).toBe(0);
      expect(guest.bench.answer).toEqual([0n, status]);
      expect(guest.wasAsked).toBe(true);
    });

  it('that fails in firmware on purpose says so', () => {
    const guest = new Guest();
    guest.bench.snp.kernel.secureProcessor!.inject({ command: 0x94, nth: 1, status: 0x17 });
    expect(guest.plain()).toBe(0);
    expect(guest.bench.answer).toEqual([0n, 0x17n]);
    expect(guest.plain()).toBe(0);
    expect(guest.report()).toEqual(guest.data);
  });

  it('without a secure processor has KVM_RUN answer ENODEV', () => {
    const guest = new Guest({ keepOpen: true });
    const { kernel, process } = guest.bench.snp;
    kernel.psp!.shutDown();
    expect(guest.plain()).toBe(-19);
    expect(guest.extended()).toBe(-19);
    expect(guest.plain({ info1: NOWHERE })).toBe(-5);
    expect(guest.plain({ info2: NOWHERE })).toBe(-19);
    expect(guest.wasAsked).toBe(false);
    process.close(guest.bench.snp.sevFd);
    expect(guest.plain()).toBe(-9);
    // Its context and the page for answers are firmware's for ever.
    process.exit();
    expect(kernel.psp!.leakedPages).toBe(2);
    kernel.close();
  });

  it('that the secure processor leaves unanswered has KVM_RUN answer ETIMEDOUT, and every later one EBUSY', () => {
    const guest = new Guest({ keepOpen: true });
    const { kernel, process } = guest.bench.snp;
    kernel.secureProcessor!.inject({ command: 0x94, nth: 1, status: -1 });
    expect(guest.plain()).toBe(-110);
    expect(guest.plain()).toBe(-16);
    expect(guest.extended()).toBe(-16);
    expect(guest.plain({ info1: NOWHERE })).toBe(-5);
    expect(guest.wasAsked).toBe(false);
    process.exit();
    expect(kernel.psp!.leakedPages).toBe(2);
    kernel.close();
  });

  it('whose pages are nowhere, or whose /dev/sev is closed, has KVM_RUN fail', () => {
    const guest = new Guest();
    expect(guest.plain({ info1: NOWHERE })).toBe(-5);
    expect(guest.plain({ info2: NOWHERE })).toBe(-5);
    expect(guest.extended({ info1: NOWHERE })).toBe(-5);
    expect(guest.wasAsked).toBe(false);
    guest.bench.snp.process.close(guest.bench.snp.sevFd);
    expect(guest.plain()).toBe(-9);
    // The request is read before firmware is asked; where the answer goes is looked at afterwards.
    expect(guest.plain({ info1: NOWHERE })).toBe(-5);
    expect(guest.plain({ info2: NOWHERE })).toBe(-9);
  });

  it('whose page the VMM has unmapped has KVM_RUN answer EIO', () => {
    const guest = new Guest();
    const { process, hva } = guest.bench.snp;
    process.memory.munmap((hva + REQUEST) as never, 4096);
    expect(guest.plain()).toBe(-5);
    expect(guest.wasAsked).toBe(false);
  });
});

describe('an extended guest request', () => {
  for (const options of [{ kernel: '6.12' }, { kernel: '7.2' }] as const)
    describe(`on ${options.kernel} without certificates from user space`, () => {
      it('has an empty table where there is a page for it, and the report', () => {
        const guest = new Guest(options);
        guest.bench.write(CERTS, new Uint8Array(32).fill(7));
        expect(guest.extended()).toBe(0);
        expect([guest.bench.exitReason, ...guest.bench.answer]).toEqual([HLT, 0n, 0n]);
        expect([...guest.bench.snp.read(CERTS, 26)]).toEqual([...new Array(24).fill(0), 7, 7]);
        expect(guest.report()).toEqual(guest.data);
      });
      it('with no page has no table', () => {
        const guest = new Guest(options);
        guest.bench.write(CERTS, new Uint8Array(32).fill(7));
        guest.extended({ rbx: 0n });
        expect(guest.info2).toBe(0n);
        expect(guest.bench.snp.read(CERTS, 1)[0]).toBe(7);
      });
      it('with a table that cannot be written has KVM_RUN answer EIO', () => {
        expect(new Guest(options).extended({ rax: NOWHERE })).toBe(-5);
      });
    });

  for (const [kernel, certs] of [
    ['6.12', false],
    ['7.2', false],
    ['7.2', true],
  ] as const)
    it(`on ${kernel}, certificates ${certs}: wants RAX and RBX, RAX aligned; for reports alone`, () => {
      const guest = new Guest({ kernel, certs });
      for (const wrong of [
        { invalid: ['rax'] },
        { invalid: ['rbx'] },
        { rax: BigInt(CERTS) + 8n },
      ] as const) {
        guest.extended(wrong);
        expect([guest.bench.exitReason, ...guest.bench.answer]).toEqual([HLT, 2n, 5n]);
      }
      guest.bench.write(REQUEST, guest.messages.seal(3, new Uint8Array(32)));
      guest.extended({ invalid: ['rax'] });
      expect([guest.bench.exitReason, guest.bench.answer[0]]).toEqual([HLT, 0n]);
      expect(guest.wasAsked).toBe(true);
    });

  describe('with KVM_SEV_SNP_ENABLE_REQ_CERTS', () => {
    // ret, npages as user space leaves it; KVM_RUN's result, info2, RBX, whether firmware was asked.
    const ROWS: readonly (readonly [string, bigint, bigint, number, bigint, bigint, boolean])[] = [
      ['0', 0n, 1n, 0, 0n, 1n, true],
      ['ENOSPC (28)', 28n, 5n, 0, 0x1_0000_0000n, 5n, false],
      ['EAGAIN (11)', 11n, 1n, 0, 0x2_0000_0000n, 1n, false],
      ['EIO (5)', 5n, 1n, 0, 0xffff_ffff_0000_0000n, 1n, false],
      ['EPERM (1)', 1n, 1n, -22, 0n, 1n, false],
      ['ENOENT (2)', 2n, 1n, -22, 0n, 1n, false],
      ['a negative errno', 0xffff_ffff_ffff_ffe4n, 1n, -22, 0n, 1n, false],
      ['2^32', 0x1_0000_0000n, 1n, -22, 0n, 1n, false],
    ];
    for (const [name, ret, npages, result, info2, rbx, asked] of ROWS)
      it(`user space answers ${name}`, () => {
        const guest = new Guest({ certs: true });
        expect(guest.extended()).toBe(0);
        expect(guest.exit).toEqual([43, BigInt(CERTS), 1n]);
        const { vcpu } = guest.bench.snp;
        const { exits } = vcpu.sev!;
        expect(exits.reqCertsRet).toBe(0n);
        exits.reqCertsRet = ret;
        exits.reqCertsNpages = npages;
        expect(vcpu.run()).toBe(result);
        if (result !== 0) expect(vcpu.run()).toBe(0);
        expect(guest.bench.answer).toEqual([0n, info2]);
        expect(guest.bench.field('rbx')).toBe(rbx);
        expect(guest.report() !== undefined).toBe(asked);
      });

    it('asks with no pages as well', () => {
      const guest = new Guest({ certs: true });
      guest.extended({ rbx: 0n });
      expect(guest.exit).toEqual([43, BigInt(CERTS), 0n]);
    });

    it('gives no certificates to other messages', () => {
      const guest = new Guest({ certs: true });
      guest.bench.write(REQUEST, guest.messages.seal(3, new Uint8Array(32)));
      guest.extended();
      expect([guest.bench.exitReason, guest.info2]).toEqual([HLT, 0n]);
    });

    it('comes back with EINTR when the report is made, where user space set immediate_exit', () => {
      const guest = new Guest({ certs: true });
      guest.extended();
      const { vcpu } = guest.bench.snp;
      vcpu.kvmRun.immediateExit = 1;
      expect(vcpu.run()).toBe(-4);
      expect(guest.wasAsked).toBe(true);
      vcpu.kvmRun.immediateExit = 0;
      expect(vcpu.run()).toBe(0);
      expect(guest.info2).toBe(0n);
      expect(guest.report()).toEqual(guest.data);
    });

    it('has firmware’s status where the report fails', () => {
      const guest = new Guest({ certs: true });
      guest.bench.write(REQUEST, flip(guest.messages.reportRequest(guest.data), 0));
      guest.extended();
      guest.bench.snp.vcpu.run();
      expect(guest.bench.answer).toEqual([0n, 0x0bn]);
    });
  });
});

for (const kernel of ['6.12', '7.2'] as const)
  describe(`an extended guest request in seed 001's form on ${kernel}`, () => {
    const early = (): Guest => new Guest({ kernel, early: ['certs'] });
    const vmgexit = ({ bench }: Guest) => {
      const { exits } = bench.snp.vcpu.sev!;
      const { vmgexitType, vmgexitDataGpa, vmgexitDataNpages, vmgexitRet, vmgexitFlags, vmgexitStatus } =
        exits;
      return [
        bench.exitReason,
        vmgexitType,
        vmgexitDataGpa,
        vmgexitDataNpages,
        vmgexitRet,
        vmgexitFlags,
        vmgexitStatus,
      ];
    };
    const ASKED = [40, 1, BigInt(CERTS), 1n, 0, 0, 0];

    it('exits by VMGEXIT with any message', () => {
      const guest = early();
      guest.extended();
      expect(vmgexit(guest)).toEqual(ASKED);
      guest.bench.snp.vcpu.run();
      guest.bench.write(REQUEST, guest.messages.seal(3, new Uint8Array(32)));
      guest.extended();
      expect(vmgexit(guest)).toEqual(ASKED);
    });

    it('wants RAX and RBX: (2, 4); RAX aligned: a generic error', () => {
      const guest = early();
      for (const invalid of [['rax'], ['rbx']] as const) {
        guest.extended({ invalid });
        expect([guest.bench.exitReason, ...guest.bench.answer]).toEqual([HLT, 2n, 4n]);
      }
      guest.extended({ rax: BigInt(CERTS) + 8n });
      expect([guest.bench.exitReason, ...guest.bench.answer]).toEqual([HLT, 0n, 0x8000_0000_0000_0000n]);
    });

    // ret, data_npages as user space leaves it; info2, RBX, whether firmware was asked.
    const ROWS: readonly (readonly [string, number, bigint, bigint, bigint, boolean])[] = [
      ['0', 0, 1n, 0n, 1n, true],
      ['1, too small', 1, 5n, 0x1_0000_0000n, 5n, false],
      ['2, busy', 2, 1n, 0x2_0000_0000n, 1n, false],
      ['1 << 31, generic', 0x8000_0000, 1n, 0x8000_0000_0000_0000n, 1n, false],
      ['any other number', 0x1234, 1n, 0x1234_0000_0000n, 1n, false],
    ];
    for (const [name, ret, npages, info2, rbx, asked] of ROWS)
      for (const notify of [0, 1])
        it(`user space answers ${name}${notify === 1 ? ' and wants to hear of the end' : ''}`, () => {
          const guest = early();
          guest.extended();
          const { vcpu } = guest.bench.snp;
          const { exits } = vcpu.sev!;
          exits.vmgexitRet = ret;
          exits.vmgexitDataNpages = npages;
          exits.vmgexitFlags = notify;
          expect(vcpu.run()).toBe(0);
          if (notify === 1) {
            expect([guest.bench.exitReason, exits.vmgexitStatus, guest.wasAsked]).toEqual([40, 1, asked]);
            expect(vcpu.run()).toBe(0);
          }
          expect([guest.bench.exitReason, ...guest.bench.answer]).toEqual([HLT, 0n, info2]);
          expect(guest.bench.field('rbx')).toBe(rbx);
          expect(guest.report() !== undefined).toBe(asked);
        });

    it('has a generic error beside firmware’s status', () => {
      const guest = early();
      guest.bench.write(REQUEST, flip(guest.messages.reportRequest(guest.data), 0));
      guest.extended();
      guest.bench.snp.vcpu.run();
      expect(guest.bench.answer).toEqual([0n, 0x8000_0000_0000_000bn]);
    });

    it('tells the guest where a page is nowhere', () => {
      const guest = early();
      guest.extended({ info1: NOWHERE });
      expect(guest.bench.snp.vcpu.run()).toBe(0);
      expect(guest.bench.answer).toEqual([0n, 0x8000_0000_0000_0000n]);
    });
  });

function flip(page: Uint8Array, at: number): Uint8Array {
  page[at]! ^= 1;
  return page;
}

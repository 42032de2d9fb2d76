/** The GHCB as tables: the MSR protocol, the order in which a page is checked on both kernels, scratch areas, MMIO, string I/O, events (reference facts 5.1 to 5.3). */
import { describe, expect, it } from 'vitest';
import type { Personality } from '../../../src/kernel/kvm/index.ts';
import { BUFFER, GhcbBench, type Request } from './ghcb-bench.ts';
import { FRESH, GHCB, type SnpVm } from './snp-bench.ts';

const KERNELS: readonly Personality[] = ['6.12', '7.2'];
const HLT = 5;
const SYSTEM_EVENT = 24;
const EVENT = { info1: 0n, info2: 0n };

describe('the GHCB MSR protocol', () => {
  // What the guest writes, and what it reads when it runs on.
  const ROWS: readonly (readonly [string, bigint, bigint])[] = [
    ['SEV information', 0x002n, 0x0002_0001_3300_0001n],
    ['CPUID 0x80000000, EAX', 0x8000_0000_0000_0004n, 0x0000_0000_0000_0005n],
    ['AP reset hold aside, preferred GHCB: none', 0x010n, 0xffff_ffff_ffff_f011n],
    ['registration echoes the gfn', 0x0004_0012n, 0x0004_0013n],
    ['registration of any gfn', 0x000f_ffff_ffff_f012n, 0x000f_ffff_ffff_f013n],
    ['page state change with operation 0', 0x0000_0000_0008_0014n, 0x8000_0000_0000_0015n],
    ['page state change with operation 3', 0x0030_0000_0008_0014n, 0x8000_0000_0000_0015n],
    ['hypervisor features: SNP, AP creation', 0x080n, 0x3081n],
    ['a response', 0x001n, 0x001n],
    ['run VMPL, which KVM lacks', 0x0000_0001_0000_0016n, 0x0000_0001_0000_0016n],
    ['a code that nobody has', 0x0000_1234_5678_9fffn, 0x0000_1234_5678_9fffn],
    ['code 0x003', 0x003n, 0x003n],
  ];
  for (const [name, value, answer] of ROWS)
    it(name, () => {
      const bench = new GhcbBench();
      expect(bench.ask(value)).toBe(0);
      expect(bench.exitReason).toBe(HLT);
      expect(bench.msr).toBe(answer);
    });

  it('says version 1 at most where the VM was made so (6.12)', () => {
    const bench = new GhcbBench({ kernel: '6.12', ghcbVersion: 1 });
    bench.ask(0x002n);
    expect(bench.msr).toBe(0x0001_0001_3300_0001n);
  });

  it('answers CPUID register by register', () => {
    const bench = new GhcbBench();
    const entry = { function: 0x8000001f, index: 0, flags: 0 };
    bench.snp.vcpu.setCpuid2([{ ...entry, eax: 0x11, ebx: 0x22, ecx: 0x33, edx: 0xffff_ff44 }]);
    const answers = [0x11n, 0x22n, 0x33n, 0xffff_ff44n];
    for (const [register, value] of answers.entries()) {
      bench.ask((0x8000_001fn << 32n) | (BigInt(register) << 30n) | 0x004n);
      expect(bench.msr).toBe((value << 32n) | (BigInt(register) << 30n) | 0x005n);
    }
  });

  it('begins as an answer to an information request, also after a run', () => {
    const bench = new GhcbBench();
    bench.core.script.push(bench.goOn);
    bench.snp.vcpu.run();
    expect(bench.msr).toBe(0x0002_0001_3300_0001n);
  });

  // Codes that are SNP's, from an SEV-ES guest.
  for (const msr of [0x010n, 0x4_0012n, (1n << 52n) | 0x8_0014n, 0x080n])
    it(`ends a guest that is not SNP-active for 0x${msr.toString(16)}`, () => {
      const bench = new GhcbBench();
      Object.assign(bench.snp.vm.sev!, { vmsaFeatures: 0n });
      expect(bench.ask(msr)).toBe(0);
      const { exits } = bench.snp.vcpu.sev!;
      expect([bench.exitReason, exits.systemEventType, exits.systemEventData(0)]).toEqual([
        SYSTEM_EVENT,
        6,
        msr,
      ]);
    });

  it('tells a guest that is not SNP-active about SEV', () => {
    const bench = new GhcbBench();
    Object.assign(bench.snp.vm.sev!, { vmsaFeatures: 0n });
    bench.ask(0x002n);
    expect([bench.exitReason, bench.msr]).toEqual([HLT, 0x0002_0001_3300_0001n]);
  });

  it('ends the guest: SYSTEM_EVENT, type 6, with the MSR', () => {
    const bench = new GhcbBench();
    expect(bench.ask(0x0002_1100n)).toBe(0);
    expect(bench.exitReason).toBe(SYSTEM_EVENT);
    const { exits } = bench.snp.vcpu.sev!;
    expect([exits.systemEventType, exits.systemEventNdata, exits.systemEventData(0)]).toEqual([
      6,
      1,
      0x0002_1100n,
    ]);
  });

  // hypercall.ret, and the answer.
  for (const [ret, answer] of [
    [0n, 0x15n],
    [22n, 0x8000_0000_0000_0015n],
    [11n, 0x8000_0000_0000_0015n],
  ] as const)
    for (const [operation, attributes] of [
      [1n, 0x10n],
      [2n, 0n],
    ] as const)
      it(`asks user space to change a page's state, operation ${operation}, answered ${ret}`, () => {
        const bench = new GhcbBench();
        expect(bench.ask((operation << 52n) | BigInt(FRESH) | 0x14n)).toBe(0);
        const { kvmRun } = bench.snp.vcpu;
        expect([kvmRun.exitReason, kvmRun.hypercallNr, kvmRun.hypercallRet]).toEqual([3, 12n, 0n]);
        expect([0, 1, 2].map((i) => kvmRun.hypercallArg(i))).toEqual([BigInt(FRESH), 1n, attributes]);
        kvmRun.hypercallRet = ret;
        expect(bench.snp.vcpu.run()).toBe(0);
        expect(bench.exitReason).toBe(HLT);
        expect(bench.msr).toBe(answer);
      });

  it('refuses a page state change where user space does not take hypercalls', () => {
    const bench = new GhcbBench();
    bench.snp.vm.enableCap({ cap: 201, args: [0n] });
    bench.ask((1n << 52n) | BigInt(FRESH) | 0x14n);
    expect([bench.exitReason, bench.msr]).toEqual([HLT, 0x8000_0000_0000_0015n]);
  });

  it('holds an AP for reset: user space gets exit 32 and goes on when it likes; the answer is 0', () => {
    const bench = new GhcbBench();
    expect(bench.ask(0x006n)).toBe(0);
    expect(bench.exitReason).toBe(32);
    expect(bench.snp.vcpu.run()).toBe(0);
    expect([bench.exitReason, bench.msr]).toEqual([HLT, 0x007n]);
  });
});

describe('a GHCB page', () => {
  it('at gpa 0, or where there is no memory, is nobody’s: the guest runs on', () => {
    const bench = new GhcbBench();
    for (const gpa of [0n, 0x4000_0000n, 0xf_ffff_ffff_f000n, 0xffff_ffff_ffff_f000n]) {
      expect(bench.ask(gpa)).toBe(0);
      expect(bench.exitReason).toBe(HLT);
    }
  });

  // Errors in the order of their checks: each row has those behind it as well. [info1, info2], or −errno of KVM_RUN.
  const ALL_WRONG: Request = { code: 0x9999n, invalid: ['code'], usage: 7 };
  const ROWS: readonly (readonly [string, { registered: boolean }, Request, unknown, unknown])[] = [
    ['not registered', { registered: false }, ALL_WRONG, -22, [2n, 1n]],
    ['usage', { registered: true }, ALL_WRONG, [2n, 2n], [2n, 2n]],
    [
      'no exit code',
      { registered: true },
      { ...EVENT, code: 0x9999n, invalid: ['code'] },
      [2n, 4n],
      [2n, 4n],
    ],
    ['no info1', { registered: true }, { ...EVENT, code: 0x9999n, invalid: ['info1'] }, [2n, 4n], [2n, 4n]],
    ['no info2', { registered: true }, { ...EVENT, code: 0x9999n, invalid: ['info2'] }, [2n, 4n], [2n, 4n]],
    ['an event that nobody has', { registered: true }, { ...EVENT, code: 0x9999n }, [2n, 6n], [2n, 6n]],
    ['run VMPL', { registered: true }, { ...EVENT, code: 0x8000_0018n }, [2n, 6n], [2n, 6n]],
    ['a 64-bit code', { registered: true }, { ...EVENT, code: 0x1_0000_0072n }, [2n, 6n], [2n, 6n]],
  ];
  for (const kernel of KERNELS) {
    for (const [name, { registered }, request, old, late] of ROWS)
      it(`${kernel}: ${name}`, () => {
        const bench = new GhcbBench({ kernel });
        if (registered) bench.register();
        const expected = kernel === '6.12' ? old : late;
        const result = bench.request(request);
        if (typeof expected === 'number') {
          expect(result).toBe(expected);
          return;
        }
        expect([result, bench.exitReason]).toEqual([0, HLT]);
        expect(bench.answer).toEqual(expected);
      });
  }

  // Fields that events need; with one of them missing the answer is (2, 4). `late`: numbers that 7.2 refuses with (2, 5) and 6.12 with `old`.
  const NEEDS: readonly (readonly [string, Request, readonly (keyof Request)[]])[] = [
    ['DR7 write', { code: 0x37n, rax: 0x400n }, ['rax']],
    ['RDPMC', { code: 0x6fn, rcx: 0n }, ['rcx']],
    ['CPUID', { code: 0x72n, rax: 0n, rcx: 0n }, ['rax', 'rcx']],
    ['CPUID 0xD', { code: 0x72n, rax: 0xdn, rcx: 0n, xcr0: 1n }, ['rax', 'rcx', 'xcr0']],
    ['OUT', { code: 0x7bn, info1: 0x0080_0010n, rax: 0n }, ['rax']],
    ['OUTS', { code: 0x7bn, info1: 0x0080_0014n, scratch: BigInt(BUFFER) }, ['scratch']],
    ['INS', { code: 0x7bn, info1: 0x0080_0015n, scratch: BigInt(BUFFER) }, ['scratch']],
    ['RDMSR', { code: 0x7cn, rcx: 0x10n }, ['rcx']],
    ['WRMSR', { code: 0x7cn, info1: 1n, rcx: 0x10n, rax: 0n, rdx: 0n }, ['rcx', 'rax', 'rdx']],
    ['VMMCALL', { code: 0x81n, rax: 1n, cpl: 0n }, ['rax', 'cpl']],
    ['MONITOR', { code: 0x8an, rax: 0n, rcx: 0n, rdx: 0n }, ['rax', 'rcx', 'rdx']],
    ['MWAIT', { code: 0x8bn, rax: 0n, rcx: 0n }, ['rax', 'rcx']],
    [
      'MMIO read',
      { code: 0x8000_0001n, info1: 0xfee0_0000n, info2: 4n, scratch: BigInt(BUFFER) },
      ['scratch'],
    ],
    [
      'MMIO write',
      { code: 0x8000_0002n, info1: 0xfee0_0000n, info2: 4n, scratch: BigInt(BUFFER) },
      ['scratch'],
    ],
    ['page state change', { code: 0x8000_0010n, scratch: BigInt(BUFFER) }, ['scratch']],
    ['AP create', { code: 0x8000_0013n, info1: 1n, info2: 0x1000n, rax: 1n }, ['rax']],
  ];
  for (const kernel of KERNELS)
    for (const [name, request, fields] of NEEDS)
      it(`${kernel}: ${name} wants ${fields.join(', ')}`, () => {
        const bench = new GhcbBench({ kernel }).register();
        for (const field of fields) {
          const invalid = [field] as NonNullable<Request['invalid']>;
          expect(bench.request({ ...EVENT, ...request, invalid })).toBe(0);
          expect([field, bench.exitReason, ...bench.answer]).toEqual([field, HLT, 2n, 4n]);
        }
        bench.request({ ...EVENT, ...request });
        expect(bench.answer).not.toEqual([2n, 4n]);
      });

  const NUMBERS: readonly (readonly [string, Request, readonly bigint[], readonly bigint[]])[] = [
    [
      'guest request, request page unaligned',
      { code: 0x8000_0011n, info1: 0x41001n, info2: 0x42000n },
      [2n, 4n],
      [2n, 5n],
    ],
    [
      'guest request, response page unaligned',
      { code: 0x8000_0011n, info1: 0x41000n, info2: 0x42008n },
      [2n, 4n],
      [2n, 5n],
    ],
    [
      'guest request, both the same',
      { code: 0x8000_0011n, info1: 0x41000n, info2: 0x41000n },
      [2n, 4n],
      [2n, 5n],
    ],
    [
      'extended guest request, both the same',
      { code: 0x8000_0012n, info1: 0n, info2: 0n },
      [2n, 4n],
      [2n, 5n],
    ],
    ['MMIO of 9 bytes', { code: 0x8000_0001n, info2: 9n, scratch: BigInt(BUFFER) }, [0n, 0n], [2n, 5n]],
    ['AP jump table, operation 2', { code: 0x8000_0005n, info1: 2n }, [2n, 5n], [2n, 5n]],
    [
      'AP creation, operation 3',
      { code: 0x8000_0013n, info1: 3n, info2: 0x1000n, rax: 1n },
      [2n, 5n],
      [2n, 5n],
    ],
    [
      'AP creation of no vCPU',
      { code: 0x8000_0013n, info1: (7n << 32n) | 1n, info2: 0x1000n, rax: 1n },
      [2n, 5n],
      [2n, 5n],
    ],
    [
      'AP creation, VMSA unaligned',
      { code: 0x8000_0013n, info1: 1n, info2: 0x1008n, rax: 1n },
      [2n, 5n],
      [2n, 5n],
    ],
    [
      'AP creation, VMSA at 2 MiB',
      { code: 0x8000_0013n, info1: 1n, info2: 0x20_0000n, rax: 1n },
      [2n, 5n],
      [2n, 5n],
    ],
    [
      'AP creation, VMSA beyond all',
      { code: 0x8000_0013n, info1: 1n, info2: 0xffff_ffff_ffff_f000n, rax: 1n },
      [2n, 5n],
      [2n, 5n],
    ],
    [
      'AP creation, injection mode',
      { code: 0x8000_0013n, info1: 0n, info2: 0x1000n, rax: 9n },
      [2n, 5n],
      [2n, 5n],
    ],
    [
      'AP creation, other features',
      { code: 0x8000_0013n, info1: 0n, info2: 0x1000n, rax: 0x21n },
      [0n, 0n],
      [2n, 5n],
    ],
  ];
  for (const kernel of KERNELS)
    for (const [name, request, old, late] of NUMBERS)
      it(`${kernel}: ${name}`, () => {
        const bench = new GhcbBench({ kernel }).register();
        bench.request({ ...EVENT, ...request });
        if (bench.exitReason === 6) bench.snp.vcpu.run();
        while (bench.exitReason === 6) bench.snp.vcpu.run();
        expect([bench.exitReason, ...bench.answer]).toEqual([HLT, ...(kernel === '6.12' ? old : late)]);
      });

  // The vCPU's CPUID: physical address bits (0x80000008 EAX), the C-bit's number (0x8000001F EBX, where there is the leaf); the VMSA's address, the answer.
  const ADDRESSES: readonly (readonly [number, number | undefined, bigint, readonly bigint[]])[] = [
    [36, undefined, 0x1000n, [0n, 0n]],
    [36, undefined, 0xf_ffff_f000n, [0n, 0n]],
    [36, undefined, 0x10_0000_1000n, [2n, 5n]],
    [36, undefined, 0x20_0000_1000n, [2n, 5n]],
    [48, undefined, 0xffff_ffff_f000n, [0n, 0n]],
    [48, undefined, 0x1_0000_0000_1000n, [2n, 5n]],
    [52, undefined, 0x2_0000_0000_1000n, [0n, 0n]],
    [52, undefined, 0xf_ffff_ffff_f000n, [0n, 0n]],
    [52, undefined, 0x10_0000_0000_1000n, [2n, 5n]],
    [48, 51, 0x8_0000_0000_1000n, [0n, 0n]],
    [48, 51, 0x4_0000_0000_1000n, [2n, 5n]],
    [48, 50, 0x8_0000_0000_1000n, [2n, 5n]],
  ];
  for (const kernel of KERNELS)
    for (const [bits, cBit, info2, answer] of ADDRESSES)
      it(`${kernel}: AP creation by a vCPU of ${bits} bits, C-bit ${cBit}, of a VMSA at 0x${info2.toString(16)}`, () => {
        const leaf = (number: number, eax: number, ebx: number) => ({
          function: number,
          index: 0,
          flags: 0,
          eax,
          ebx,
          ecx: 0,
          edx: 0,
        });
        const leaves = [leaf(0x8000_0008, bits, 0)];
        if (cBit !== undefined) leaves.push(leaf(0x8000_001f, 0, cBit));
        const launch = (snp: SnpVm): void => snp.vcpu.setCpuid2(leaves);
        const bench = new GhcbBench({ kernel, others: [1], launch }).register();
        bench.request({ ...EVENT, code: 0x8000_0013n, info1: 1n << 32n, info2, rax: 1n });
        expect(bench.answer).toEqual(answer);
      });

  // Events that need no field but the code and the two numbers: none of them is refused for what is missing, or unknown.
  const BARE: readonly (readonly [string, Request])[] = [
    ['DR7 read', { code: 0x27n }],
    ['RDTSC', { code: 0x6en }],
    ['INVD', { code: 0x76n }],
    ['IN', { code: 0x7bn, info1: 0x0060_0011n }],
    ['RDTSCP', { code: 0x87n }],
    ['WBINVD', { code: 0x89n }],
    ['NMI complete', { code: 0x8000_0003n }],
    ['AP reset hold', { code: 0x8000_0004n }],
    ['AP jump table', { code: 0x8000_0005n, info1: 1n }],
    ['guest request', { code: 0x8000_0011n, info1: 0x41000n, info2: 0x42000n }],
    ['AP destroy', { code: 0x8000_0013n, info1: (1n << 32n) | 2n }],
    ['hypervisor features', { code: 0x8000_fffdn }],
    ['termination', { code: 0x8000_fffen }],
  ];
  for (const kernel of KERNELS)
    for (const [name, request] of BARE)
      it(`${kernel}: ${name} wants no further field`, () => {
        const bench = new GhcbBench({ kernel, others: [1] }).register();
        expect(bench.request({ ...EVENT, ...request })).toBe(0);
        expect(bench.answer[0]).toBe(0n);
      });

  // An SEV-ES guest may not ask for what is SNP's. 6.12 finds fields missing, 7.2 does not know the event.
  for (const kernel of KERNELS)
    for (const code of [0x8000_0010n, 0x8000_0011n, 0x8000_0012n, 0x8000_0013n, 0x8000_fffdn])
      it(`${kernel}: 0x${code.toString(16)} of a guest that is not SNP-active`, () => {
        const bench = new GhcbBench({ kernel });
        Object.assign(bench.snp.vm.sev!, { vmsaFeatures: 0n });
        bench.request({ ...EVENT, code, rax: 0n, scratch: BigInt(BUFFER), info2: 0x1000n });
        expect([bench.exitReason, ...bench.answer]).toEqual([HLT, 2n, kernel === '6.12' ? 4n : 6n]);
        // Its GHCB needs no registration.
        bench.request({ ...EVENT, code: 0x89n });
        expect(bench.answer).toEqual([0n, 0n]);
      });

  it('leaves RIP in the VMCB alone: the guest’s own handler steps over what it asked for', () => {
    const bench = new GhcbBench().register();
    const before = bench.core.long(0x578);
    bench.core.set(0xc8, 0x1234n);
    bench.request({ ...EVENT, code: 0x89n });
    expect([bench.exitReason, bench.core.long(0x578)]).toEqual([HLT, before]);
  });

  it('gives RAX, RBX, RCX and RDX back, with valid bits for them and the two numbers alone', () => {
    const bench = new GhcbBench().register();
    bench.request({ ...EVENT, code: 0x8000_fffdn, rax: 11n, rbx: 12n, rcx: 13n, rdx: 14n, rsi: 15n });
    expect(bench.answer).toEqual([0n, 3n]);
    expect((['rax', 'rbx', 'rcx', 'rdx'] as const).map((name) => bench.field(name))).toEqual([
      11n,
      12n,
      13n,
      14n,
    ]);
    for (const name of ['rax', 'rbx', 'rcx', 'rdx', 'info1', 'info2'] as const)
      expect(bench.isValid(name)).toBe(true);
    for (const name of ['code', 'scratch', 'rsi', 'cpl', 'xcr0'] as const)
      expect(bench.isValid(name)).toBe(false);
  });

  it('that is refused gives back what it held, and 0 for what was not valid', () => {
    const bench = new GhcbBench().register();
    bench.request({ ...EVENT, code: 0x9999n, rax: 21n, rbx: 22n, rcx: 23n, invalid: ['rcx'] });
    expect(bench.answer).toEqual([2n, 6n]);
    expect((['rax', 'rbx', 'rcx', 'rdx'] as const).map((name) => bench.field(name))).toEqual([
      21n,
      22n,
      0n,
      0n,
    ]);
  });
});

describe('the scratch area', () => {
  // Address, length of an MMIO access; answer.
  const ROWS: readonly (readonly [string, bigint, bigint, readonly bigint[]])[] = [
    ['0', 0n, 8n, [2n, 3n]],
    ['the buffer’s start', BigInt(GHCB) + 0x800n, 8n, [0n, 0n]],
    ['the buffer’s end', BigInt(GHCB) + 0xfe8n, 8n, [0n, 0n]],
    ['across the buffer’s end', BigInt(GHCB) + 0xfe9n, 8n, [2n, 3n]],
    ['before the buffer', BigInt(GHCB) + 0x7ffn, 1n, [2n, 3n]],
    ['another page', BigInt(GHCB) + 0x1800n, 8n, [2n, 3n]],
    ['a private page', 0x8000n, 8n, [2n, 3n]],
    ['beyond all', 0xffff_ffff_ffff_fff8n, 8n, [2n, 3n]],
  ];
  for (const [name, scratch, info2, answer] of ROWS)
    for (const code of [0x8000_0001n, 0x8000_0002n])
      it(`${name}, for MMIO ${code === 0x8000_0001n ? 'read' : 'write'}`, () => {
        const bench = new GhcbBench().register();
        bench.request({ code, info1: 0xd000_0000n, info2, scratch });
        if (answer[0] === 0n) {
          expect(bench.exitReason).toBe(6);
          bench.snp.vcpu.run();
        }
        expect([bench.exitReason, ...bench.answer]).toEqual([HLT, ...answer]);
      });
  it.each([
    ['MMIO of no bytes', { code: 0x8000_0001n, info1: 0xd000_0000n, info2: 0n }],
    ['string I/O of no size', { code: 0x7bn, info1: 0x0060_0005n, info2: 4n }],
    ['string I/O of no elements', { code: 0x7bn, info1: 0x0060_0015n, info2: 0n }],
  ])('is not looked at for %s', (_, request) => {
    const bench = new GhcbBench().register();
    bench.request({ ...request, scratch: 0n });
    expect([bench.exitReason, ...bench.answer]).toEqual([HLT, 0n, 0n]);
  });

  it('of a page state change is checked as well', () => {
    const bench = new GhcbBench().register();
    bench.request({ ...EVENT, code: 0x8000_0010n, scratch: BigInt(GHCB) + 0xfecn });
    expect(bench.answer).toEqual([2n, 3n]);
  });
});

describe('the scratch area of version 1 (6.12)', () => {
  const ELSEWHERE = GHCB + 0x2000;
  const version1 = () => new GhcbBench({ kernel: '6.12', ghcbVersion: 1 }).register();

  // Address, bytes of an MMIO read; answer, −errno of KVM_RUN, or the exit to user space.
  const ROWS: readonly (readonly [string, bigint, bigint, readonly bigint[] | number])[] = [
    ['0', 0n, 8n, [2n, 3n]],
    ['in the GHCB’s buffer', BigInt(BUFFER), 8n, 6],
    ['in the GHCB, before its buffer', BigInt(GHCB) + 0x7ffn, 1n, [2n, 3n]],
    ['in the GHCB, across its buffer’s end', BigInt(GHCB) + 0xfe9n, 8n, [2n, 3n]],
    ['in another page', BigInt(ELSEWHERE), 8n, 6],
    ['across two pages', BigInt(ELSEWHERE) + 0xffcn, 8n, 6],
    ['from the page before into the GHCB', BigInt(GHCB) - 4n, 8n, 6],
    ['16 pages', BigInt(ELSEWHERE), 0x10000n, 6],
    ['16 pages and a byte', BigInt(ELSEWHERE), 0x10001n, [2n, 3n]],
    ['nowhere', 0x4000_0000n, 8n, -14],
    ['half nowhere', 0x1f_fffcn, 8n, -14],
    ['beyond all addresses', 1n << 52n, 8n, -14],
    ['to the last byte of 2^64', 0xffff_ffff_ffff_fff8n, 7n, -14],
    ['around the end of 2^64', 0xffff_ffff_ffff_fff8n, 8n, [2n, 3n]],
  ];
  for (const [name, scratch, info2, outcome] of ROWS)
    it(name, () => {
      const bench = version1();
      const result = bench.request({ code: 0x8000_0001n, info1: 0xd000_0000n, info2, scratch });
      if (outcome === 6) expect([result, bench.exitReason]).toEqual([0, 6]);
      else if (typeof outcome === 'number') expect(result).toBe(outcome);
      else expect([result, bench.exitReason, ...bench.answer]).toEqual([0, HLT, ...outcome]);
    });

  it('is read when the guest exits, and what an MMIO read or INS gave is written there when it runs on', () => {
    const bench = version1();
    const { vcpu } = bench.snp;
    bench.write(ELSEWHERE, Uint8Array.of(1, 2, 3, 4, 5, 6, 7, 8, 9));
    const scratch = BigInt(ELSEWHERE);
    bench.request({ code: 0x8000_0002n, info1: 0xd000_0000n, info2: 4n, scratch });
    expect([...vcpu.kvmRun.mmioData.subarray(0, 4)]).toEqual([1, 2, 3, 4]);
    bench.write(ELSEWHERE, Uint8Array.of(11));
    vcpu.run();
    expect([...bench.snp.read(ELSEWHERE, 2)]).toEqual([11, 2]);
    expect(vcpu.kvmRun.mmioIsWrite).toBe(1);
    bench.request({ code: 0x8000_0001n, info1: 0xd000_0000n, info2: 4n, scratch });
    expect(vcpu.kvmRun.mmioIsWrite).toBe(0);
    vcpu.kvmRun.mmioData.set([21, 22, 23, 24]);
    vcpu.run();
    expect([...bench.snp.read(ELSEWHERE, 6)]).toEqual([21, 22, 23, 24, 5, 6]);
    bench.request({ code: 0x7bn, info1: 0x0060_0015n, info2: 5000n, scratch });
    vcpu.kvmRun.bytes.fill(31, vcpu.kvmRun.ioDataOffset, vcpu.kvmRun.ioDataOffset + 4096);
    vcpu.run();
    expect([vcpu.kvmRun.exitReason, vcpu.kvmRun.ioCount]).toEqual([2, 904]);
    expect(bench.snp.read(ELSEWHERE, 1)[0]).toBe(21);
    vcpu.kvmRun.bytes.fill(32, vcpu.kvmRun.ioDataOffset, vcpu.kvmRun.ioDataOffset + 904);
    vcpu.run();
    expect([4095, 4096, 4999, 5000].map((at) => bench.snp.read(ELSEWHERE + at, 1)[0])).toEqual([
      31, 32, 32, 0,
    ]);
    bench.write(ELSEWHERE, new Uint8Array(16));
    bench.ask(0x002n);
    expect(bench.snp.read(ELSEWHERE, 1)[0]).toBe(0);
  });

  it('has no room for page state changes outside of the GHCB: a bad header', () => {
    const bench = version1();
    bench.request({ ...EVENT, code: 0x8000_0010n, scratch: BigInt(ELSEWHERE) });
    expect(bench.answer).toEqual([0n, 0x1_0000_0001n]);
  });
});

describe('MMIO by GHCB', () => {
  it('goes to user space: a write has the guest’s bytes', () => {
    const bench = new GhcbBench().register();
    bench.write(BUFFER, Uint8Array.of(1, 2, 3, 4));
    bench.request({ code: 0x8000_0002n, info1: 0xd000_0010n, info2: 4n, scratch: BigInt(BUFFER) });
    const { kvmRun } = bench.snp.vcpu;
    expect([kvmRun.exitReason, kvmRun.mmioPhysAddr, kvmRun.mmioLen, kvmRun.mmioIsWrite]).toEqual([
      6,
      0xd000_0010n,
      4,
      1,
    ]);
    expect([...kvmRun.mmioData.subarray(0, 4)]).toEqual([1, 2, 3, 4]);
    bench.snp.vcpu.run();
    expect(bench.answer).toEqual([0n, 0n]);
  });

  it('a read has user space’s bytes', () => {
    const bench = new GhcbBench().register();
    bench.request({ code: 0x8000_0001n, info1: 0xd000_0010n, info2: 8n, scratch: BigInt(BUFFER) });
    const { kvmRun } = bench.snp.vcpu;
    kvmRun.mmioData.set([8, 7, 6, 5, 4, 3, 2, 1]);
    bench.snp.vcpu.run();
    expect([...bench.snp.read(BUFFER, 8)]).toEqual([8, 7, 6, 5, 4, 3, 2, 1]);
  });

  it('of no bytes is done', () => {
    const bench = new GhcbBench().register();
    bench.request({ code: 0x8000_0001n, info1: 0xd000_0010n, info2: 0n, scratch: BigInt(BUFFER) });
    expect([bench.exitReason, ...bench.answer]).toEqual([HLT, 0n, 0n]);
  });

  it('of 20 bytes (6.12) comes in pieces of 8, 8 and 4', () => {
    const bench = new GhcbBench({ kernel: '6.12' }).register();
    bench.request({ code: 0x8000_0001n, info1: 0xd000_0000n, info2: 20n, scratch: BigInt(BUFFER) });
    const pieces: [bigint, number][] = [];
    while (bench.exitReason === 6) {
      const { kvmRun } = bench.snp.vcpu;
      pieces.push([kvmRun.mmioPhysAddr, kvmRun.mmioLen]);
      kvmRun.mmioData.fill(pieces.length);
      bench.snp.vcpu.run();
    }
    expect(pieces).toEqual([
      [0xd000_0000n, 8],
      [0xd000_0008n, 8],
      [0xd000_0010n, 4],
    ]);
    expect([...bench.snp.read(BUFFER, 21)]).toEqual([
      ...Array(8).fill(1),
      ...Array(8).fill(2),
      ...Array(4).fill(3),
      0,
    ]);
  });

  it('of the local APIC’s page stays in the kernel where there is one', () => {
    const bench = new GhcbBench({
      prepare: ({ vm }) => vm.enableCap({ cap: 121, args: [24n] }),
    }).register();
    // The version register: 0x14, with six or seven entries.
    bench.request({ code: 0x8000_0001n, info1: 0xfee0_0030n, info2: 4n, scratch: BigInt(BUFFER) });
    expect(bench.exitReason).not.toBe(6);
    expect(bench.snp.read(BUFFER, 1)[0]).toBe(0x14);
    bench.write(BUFFER, Uint8Array.of(0x55, 0, 0, 0));
    bench.request({ code: 0x8000_0002n, info1: 0xfee0_0080n, info2: 4n, scratch: BigInt(BUFFER) });
    bench.request({ code: 0x8000_0001n, info1: 0xfee0_0080n, info2: 4n, scratch: BigInt(BUFFER) });
    expect(bench.snp.read(BUFFER, 1)[0]).toBe(0x55);
  });
});

describe('string I/O by GHCB', () => {
  it('OUTS: one exit with all elements', () => {
    const bench = new GhcbBench().register();
    bench.write(BUFFER, Uint8Array.of(1, 2, 3, 4, 5, 6));
    bench.request({ code: 0x7bn, info1: 0x03f8_0024n, info2: 3n, scratch: BigInt(BUFFER) });
    const { kvmRun } = bench.snp.vcpu;
    expect([kvmRun.exitReason, kvmRun.ioDirection, kvmRun.ioSize, kvmRun.ioPort, kvmRun.ioCount]).toEqual([
      2, 1, 2, 0x3f8, 3,
    ]);
    expect([...kvmRun.bytes.subarray(kvmRun.ioDataOffset, kvmRun.ioDataOffset + 6)]).toEqual([
      1, 2, 3, 4, 5, 6,
    ]);
    bench.snp.vcpu.run();
    expect([bench.exitReason, ...bench.answer]).toEqual([HLT, 0n, 0n]);
  });
  it('INS: the data go into the scratch area', () => {
    const bench = new GhcbBench().register();
    bench.request({ code: 0x7bn, info1: 0x0060_0015n, info2: 4n, scratch: BigInt(BUFFER) });
    const { kvmRun } = bench.snp.vcpu;
    expect([kvmRun.exitReason, kvmRun.ioDirection, kvmRun.ioSize, kvmRun.ioCount]).toEqual([2, 0, 1, 4]);
    kvmRun.bytes.set([9, 8, 7, 6], kvmRun.ioDataOffset);
    bench.snp.vcpu.run();
    expect([...bench.snp.read(BUFFER, 4)]).toEqual([9, 8, 7, 6]);
  });
  // info1, info2, and what comes of it: an answer, or −errno of KVM_RUN.
  const ROWS: readonly (readonly [string, bigint, bigint, readonly bigint[] | number])[] = [
    ['no elements', 0x0060_0015n, 0n, [0n, 0n]],
    ['no size', 0x0060_0005n, 4n, [0n, 0n]],
    ['more than the buffer has', 0x0060_0015n, 2033n, [2n, 3n]],
    ['OUTS of more than the buffer has', 0x03f8_0014n, 2033n, [2n, 3n]],
    ['2^31 − 1 bytes', 0x0060_0015n, 0x7fff_ffffn, [2n, 3n]],
    ['2^31 elements', 0x0060_0015n, 0x8000_0000n, -22],
    ['2^31 bytes', 0x0060_0045n, 0x2000_0000n, -22],
    ['2^64 − 1 elements', 0x0060_0015n, 0xffff_ffff_ffff_ffffn, -22],
  ];
  for (const [name, info1, info2, outcome] of ROWS)
    it(name, () => {
      const bench = new GhcbBench().register();
      const result = bench.request({ code: 0x7bn, info1, info2, scratch: BigInt(BUFFER) });
      if (typeof outcome === 'number') expect(result).toBe(outcome);
      else expect([result, ...bench.answer]).toEqual([0, ...outcome]);
    });
});

describe('events by GHCB that are a plain guest’s exits', () => {
  it('CPUID answers in the four registers', () => {
    const bench = new GhcbBench().register();
    bench.request({ ...EVENT, code: 0x72n, rax: 0x4000_0000n, rcx: 0n });
    expect([bench.exitReason, ...bench.answer]).toEqual([HLT, 0n, 0n]);
    expect(bench.isValid('rdx')).toBe(true);
  });
  it('RDMSR of what there is, and of what there is not: #GP (13) by info1 1', () => {
    const bench = new GhcbBench().register();
    bench.request({ ...EVENT, code: 0x7cn, rcx: 0x1bn });
    expect(bench.answer).toEqual([0n, 0n]);
    expect(bench.field('rax')).toBe(0xfee0_0900n);
    bench.request({ ...EVENT, code: 0x7cn, rcx: 0x1234_5678n });
    expect(bench.answer).toEqual([1n, 0x8000_030dn]);
  });
  it('RDPMC: #GP', () => {
    const bench = new GhcbBench().register();
    bench.request({ ...EVENT, code: 0x6fn, rcx: 0n });
    expect(bench.answer).toEqual([1n, 0x8000_0b0dn]);
  });
  it('OUT and IN go to user space', () => {
    const bench = new GhcbBench().register();
    bench.request({ ...EVENT, code: 0x7bn, info1: 0x0080_0010n, rax: 0xabn });
    const { kvmRun } = bench.snp.vcpu;
    expect([kvmRun.exitReason, kvmRun.ioDirection, kvmRun.ioPort, kvmRun.ioValue()]).toEqual([
      2, 1, 0x80, 0xab,
    ]);
    bench.snp.vcpu.run();
    expect(bench.answer).toEqual([0n, 0n]);
    bench.request({ ...EVENT, code: 0x7bn, info1: 0x0060_0011n, rax: 0n });
    kvmRun.setIoValue(0x5a);
    bench.snp.vcpu.run();
    expect(bench.field('rax')).toBe(0x5an);
  });
  it('OUT and IN of no size do nothing', () => {
    const bench = new GhcbBench().register();
    for (const info1 of [0x0080_0000n, 0x0060_0001n]) {
      bench.request({ ...EVENT, code: 0x7bn, info1, rax: 0xabn });
      expect([bench.exitReason, ...bench.answer]).toEqual([HLT, 0n, 0n]);
    }
  });
  it('DR7 is the guest’s: reading and writing it does nothing', () => {
    const bench = new GhcbBench().register();
    for (const code of [0x27n, 0x37n]) {
      bench.request({ ...EVENT, code, rax: 0x155n, rcx: 7n });
      expect([bench.exitReason, ...bench.answer]).toEqual([HLT, 0n, 0n]);
      expect([bench.field('rax'), bench.field('rcx')]).toEqual([0x155n, 7n]);
    }
  });
  it('RDTSC: KVM knows no such exit, INTERNAL_ERROR 4 with its number', () => {
    const bench = new GhcbBench().register();
    expect(bench.request({ ...EVENT, code: 0x6en })).toBe(0);
    const { kvmRun } = bench.snp.vcpu;
    expect([kvmRun.exitReason, kvmRun.internalErrorSuberror, kvmRun.internalErrorData(0)]).toEqual([
      17,
      4,
      0x6en,
    ]);
  });
  it('RDTSCP: #UD', () => {
    const bench = new GhcbBench().register();
    bench.request({ ...EVENT, code: 0x87n });
    expect([bench.exitReason, ...bench.answer]).toEqual([HLT, 0n, 0n]);
    expect(bench.core.eventInjections.at(-1)! & 0xffff_ffffn).toBe(0x8000_0306n);
  });
  it('WBINVD, INVD, MONITOR and MWAIT do nothing', () => {
    const bench = new GhcbBench().register();
    for (const code of [0x89n, 0x76n, 0x8an, 0x8bn]) {
      bench.request({ ...EVENT, code, rax: 0n, rcx: 0n, rdx: 0n });
      expect([bench.exitReason, ...bench.answer]).toEqual([HLT, 0n, 0n]);
    }
  });
  it('VMMCALL: a hypercall of user space, MAP_GPA_RANGE', () => {
    const bench = new GhcbBench().register();
    bench.request({ ...EVENT, code: 0x81n, rax: 12n, rbx: 0x80000n, rcx: 2n, rdx: 0x10n, cpl: 0n });
    const { kvmRun } = bench.snp.vcpu;
    expect([kvmRun.exitReason, kvmRun.hypercallNr, kvmRun.hypercallArg(0), kvmRun.hypercallArg(1)]).toEqual([
      3,
      12n,
      0x80000n,
      2n,
    ]);
    kvmRun.hypercallRet = 0n;
    bench.snp.vcpu.run();
    expect(bench.answer).toEqual([0n, 0n]);
    expect(bench.field('rax')).toBe(0n);
  });
  it('VMMCALL from a program: EPERM', () => {
    const bench = new GhcbBench().register();
    bench.request({ ...EVENT, code: 0x81n, rax: 12n, rbx: 0x80000n, rcx: 2n, rdx: 0x10n, cpl: 3n });
    expect(BigInt.asIntN(64, bench.field('rax'))).toBe(-1n);
  });
});

describe('other events by GHCB', () => {
  it('hypervisor features: 3', () => {
    const bench = new GhcbBench().register();
    bench.request({ ...EVENT, code: 0x8000_fffdn });
    expect(bench.answer).toEqual([0n, 3n]);
  });
  it('termination: SYSTEM_EVENT with the GHCB’s address', () => {
    const bench = new GhcbBench().register();
    bench.request({ code: 0x8000_fffen, info1: 0x21n, info2: 0n });
    const { exits } = bench.snp.vcpu.sev!;
    expect([bench.exitReason, exits.systemEventType, exits.systemEventData(0)]).toEqual([
      SYSTEM_EVENT,
      6,
      BigInt(GHCB),
    ]);
  });
  it('unsupported event: KVM_RUN answers EINVAL', () => {
    const bench = new GhcbBench().register();
    expect(bench.request({ ...EVENT, code: 0x8000_ffffn })).toBe(-22);
  });
  it('the AP jump table is kept for who asks', () => {
    const bench = new GhcbBench().register();
    bench.request({ ...EVENT, code: 0x8000_0005n, info1: 1n });
    expect(bench.answer).toEqual([0n, 0n]);
    bench.request({ code: 0x8000_0005n, info1: 0n, info2: 0x1234_5000n });
    expect(bench.answer).toEqual([0n, 0n]);
    bench.request({ ...EVENT, code: 0x8000_0005n, info1: 1n });
    expect(bench.answer).toEqual([0n, 0x1234_5000n]);
  });
  it('an NMI intercepts no IRET, and one in a shadow steps over nothing: the guest says when it is complete', () => {
    const bench = new GhcbBench().register();
    const { vcpu } = bench.snp;
    const IRET = 1 << 20;
    const DEBUG_EXCEPTION = 1 << 1;
    const valid = () => bench.core.eventInjections.filter((event) => (event & 0x8000_0000n) !== 0n).length;
    vcpu.vmcb.setWord(0x68, 1);
    vcpu.nmi();
    bench.ask(0x002n);
    expect([valid(), vcpu.vmcb.word(0x08) & DEBUG_EXCEPTION, vcpu.vmcb.word(0x0c) & IRET]).toEqual([0, 0, 0]);
    vcpu.vmcb.setWord(0x68, 0);
    vcpu.nmi();
    bench.ask(0x002n);
    expect([valid(), vcpu.vmcb.word(0x08) & DEBUG_EXCEPTION, vcpu.vmcb.word(0x0c) & IRET]).toEqual([1, 0, 0]);
    vcpu.setVcpuEvents({ ...vcpu.getVcpuEvents(), flags: 0, nmi: { injected: 0, pending: 0, masked: 1 } });
    expect(vcpu.vmcb.word(0x0c) & IRET).toBe(0);
  });
  it('NMI complete lets the next NMI in', () => {
    const bench = new GhcbBench().register();
    const { vcpu } = bench.snp;
    vcpu.nmi();
    vcpu.nmi();
    bench.ask(0x002n);
    const valid = bench.core.eventInjections.filter((event) => (event & 0x8000_0000n) !== 0n);
    expect(valid.map((event) => event & 0x7ffn)).toEqual([0x200n]);
    expect(vcpu.getVcpuEvents().nmi.masked).toBe(1);
    bench.request({ ...EVENT, code: 0x8000_0003n });
    expect(bench.answer).toEqual([0n, 0n]);
    const all = bench.core.eventInjections.filter((event) => (event & 0x8000_0000n) !== 0n);
    expect(all.map((event) => event & 0x7ffn)).toEqual([0x200n, 0x200n]);
  });
  it('AP reset hold: exit 32, and 0 when user space goes on', () => {
    const bench = new GhcbBench().register();
    expect(bench.request({ ...EVENT, code: 0x8000_0004n })).toBe(0);
    expect(bench.exitReason).toBe(32);
    bench.snp.vcpu.run();
    expect([bench.exitReason, ...bench.answer]).toEqual([HLT, 0n, 0n]);
  });
});

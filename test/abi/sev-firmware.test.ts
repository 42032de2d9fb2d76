import { describe, expect, it } from 'vitest';
import { attestationReport } from '../../src/abi/attestation-report.ts';
import * as message from '../../src/abi/guest-message.ts';
import * as firmware from '../../src/abi/sev-firmware.ts';
import { SEV_STATUS, sevStatusName } from '../../src/abi/sev-status.ts';

describe('layouts of the secure processor', () => {
  it.each([
    // AMD's structures with their sizes, and offsets of some members
    [firmware.snpInitEx, 64, { flags: 0, listAddress: 8, maxSnpAsid: 16, reserved2: 18 }],
    [firmware.snpShutdownEx, 8, { length: 0, flags: 4 }],
    [
      firmware.snpPlatformStatus,
      32,
      { state: 2, buildId: 4, capabilities: 8, guestCount: 12, currentTcb: 16, reportedTcb: 24 },
    ],
    [firmware.snpActivate, 16, { context: 0, asid: 8 }],
    [firmware.snpActivateEx, 32, { context: 8, asid: 16, apicIdCount: 20, apicIds: 24 }],
    [firmware.snpGuestStatus, 32, { policy: 0, asid: 8, state: 12, flags: 16 }],
    [firmware.snpGuestRequest, 24, { context: 0, request: 8, response: 16 }],
    [firmware.snpLaunchStart, 48, { policy: 8, migrationAgent: 16, flags: 24, desiredTscKhz: 28, gosvw: 32 }],
    [firmware.snpLaunchUpdate, 32, { flags: 8, address: 16, permissions: 24 }],
    [firmware.snpLaunchFinish, 64, { idBlock: 8, idAuth: 16, flags: 24, hostData: 32 }],
    [
      firmware.snpIdBlock,
      96,
      { launchDigest: 0, familyId: 0x30, imageId: 0x40, version: 0x50, guestSvn: 0x54, policy: 0x58 },
    ],
    [
      firmware.snpIdAuth,
      4096,
      { authorKeyAlgo: 4, idBlockSignature: 0x40, idKey: 0x240, idKeySignature: 0x680, authorKey: 0x880 },
    ],
    [firmware.snpDebug, 24, { source: 8, destination: 16 }],
    [firmware.snpPageSetState, 16, { length: 0, list: 8 }],
    [firmware.snpConfig, 64, { reportedTcb: 0, flags: 8, reserved: 12 }],
    [firmware.snpVlekLoad, 16, { length: 0, wrappedVersion: 4, address: 8 }],
    [firmware.snpWrappedVlek, 432, { iv: 0, ciphertext: 0x10, tcb: 0x190, tag: 0x1a0 }],
    [firmware.snpFeatureInfo, 16, { length: 0, ecxIn: 4, address: 8 }],
    [firmware.sevPlatformStatus, 12, { state: 2, flags: 3, build: 7, guestCount: 8 }],
    [
      message.guestMessageHeader,
      0x60,
      {
        authTag: 0,
        sequence: 0x20,
        algo: 0x30,
        headerVersion: 0x31,
        headerSize: 0x32,
        type: 0x34,
        version: 0x35,
        size: 0x36,
        vmpck: 0x3c,
      },
    ],
    [message.cpuidFunction, 48, { xcr0In: 8, xssIn: 16, eax: 24, edx: 36, reserved: 40 }],
    [message.cpuidPage, 3088, { entries: 16 }],
    [message.keyRequest, 32, { guestFieldSelect: 8, vmpl: 16, guestSvn: 20, tcbVersion: 24 }],
    [message.keyResponse, 64, { status: 0, derivedKey: 0x20 }],
    [message.reportRequest, 96, { reportData: 0, vmpl: 0x40, keySelect: 0x44, reserved: 0x48 }],
    [message.reportResponse, 32, { status: 0, reportSize: 4 }],
    [message.tscInfoResponse, 128, { scale: 8, offset: 16, factor: 24 }],
    [message.vmrkRequest, 64, { context: 0, vmrk: 32 }],
    [
      message.secretsPage,
      0x164,
      {
        fms: 8,
        gosvw: 0x10,
        vmpcks: 0x20,
        guestArea: 0xa0,
        vmsaTweakBitmap: 0x100,
        svsm: 0x140,
        tscFactor: 0x160,
      },
    ],
    [
      attestationReport,
      0x4a0,
      {
        ...{
          guestSvn: 4,
          policy: 8,
          familyId: 0x10,
          imageId: 0x20,
          vmpl: 0x30,
          signatureAlgo: 0x34,
          currentTcb: 0x38,
        },
        ...{ platformInfo: 0x40, keyInfo: 0x48, reportData: 0x50, measurement: 0x90, hostData: 0xc0 },
        ...{
          idKeyDigest: 0xe0,
          authorKeyDigest: 0x110,
          reportId: 0x140,
          reportIdMa: 0x160,
          reportedTcb: 0x180,
        },
        ...{
          cpuidFamily: 0x188,
          chipId: 0x1a0,
          committedTcb: 0x1e0,
          currentBuild: 0x1e8,
          committedBuild: 0x1ec,
        },
        ...{ launchTcb: 0x1f0, launchMitVector: 0x1f8, currentMitVector: 0x200, signature: 0x2a0 },
      },
    ],
  ])('$name', (layout, size, offsets) => {
    expect(layout.size).toBe(size);
    expect(layout.offsets).toMatchObject(offsets);
  });

  it.each([
    ['SNP_INIT_EX', 0x85],
    ['SNP_GCTX_CREATE', 0x93],
    ['SNP_GUEST_REQUEST', 0x94],
    ['SNP_LAUNCH_UPDATE', 0xa1],
    ['SNP_PAGE_RECLAIM', 0xc7],
    ['SNP_FEATURE_INFO', 0xce],
  ] as const)('command %s is %#x', (name, command) => {
    expect(firmware.SEV_CMD[name]).toBe(command);
    expect(firmware.sevCommandName(command)).toBe(name);
  });

  it('status codes are those of Linux', () => {
    expect(Object.entries(SEV_STATUS).map(([name, code]) => `${code.toString(16)} ${name}`)).toEqual([
      ...[
        '0 SUCCESS',
        '1 INVALID_PLATFORM_STATE',
        '2 INVALID_GUEST_STATE',
        '3 INVALID_CONFIG',
        '4 INVALID_LENGTH',
      ],
      ...['5 ALREADY_OWNED', '6 INVALID_CERTIFICATE', '7 POLICY_FAILURE', '8 INACTIVE', '9 INVALID_ADDRESS'],
      ...['a BAD_SIGNATURE', 'b BAD_MEASUREMENT', 'c ASID_OWNED', 'd INVALID_ASID', 'e WBINVD_REQUIRED'],
      ...[
        'f DF_FLUSH_REQUIRED',
        '10 INVALID_GUEST',
        '11 INVALID_COMMAND',
        '12 ACTIVE',
        '13 HWERROR_PLATFORM',
      ],
      ...[
        '14 HWERROR_UNSAFE',
        '15 UNSUPPORTED',
        '16 INVALID_PARAM',
        '17 RESOURCE_LIMIT',
        '18 SECURE_DATA_INVALID',
      ],
      ...['19 INVALID_PAGE_SIZE', '1a INVALID_PAGE_STATE', '1b INVALID_MDATA_ENTRY', '1c INVALID_PAGE_OWNER'],
      ...['1d AEAD_OFLOW', '1f RB_MODE_EXITED', '20 RMP_INIT_REQUIRED', '21 BAD_SVN', '22 BAD_VERSION'],
      ...['23 SHUTDOWN_REQUIRED', '24 UPDATE_FAILED', '25 RESTORE_REQUIRED', '26 RMP_INITIALIZATION_FAILED'],
      '27 INVALID_KEY',
    ]);
    expect(sevStatusName(0x1c)).toBe('INVALID_PAGE_OWNER');
    expect(sevStatusName(0x1e)).toBeUndefined();
  });
});

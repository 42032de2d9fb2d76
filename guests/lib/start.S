# Entry of every guest here. The VMM enters in long mode at CPL 0 with identity paging, RSP at the top of RAM minus 8 and the
# vCPU's index in EDI; all vCPUs enter here. vCPU 0 runs main, the others secondary_main where a guest has one.

        .section .text.start, "ax"
        .globl  _start
        .type   _start, @function
_start:
        cld
        xorl    %ebp, %ebp
        movl    %edi, %edi
        testl   %edi, %edi
        jnz     1f
        leaq    8(%rsp), %rax
        movq    %rax, ram_top(%rip)
        subq    $8, %rsp
        call    main
        movl    %eax, %edi
        call    exit
1:
        # each vCPU's stack lies 64 KiB below the one before it
        movq    %rdi, %rax
        shlq    $16, %rax
        subq    %rax, %rsp
        subq    $8, %rsp
        call    secondary_main
        .globl  park
park:
        cli
        hlt
        jmp     park

        .weak   secondary_main
        .type   secondary_main, @function
secondary_main:
        ret

        .section .note.GNU-stack, "", @progbits
